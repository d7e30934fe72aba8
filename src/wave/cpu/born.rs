//! The time loops of Born modelling and of any source's wavefield.

use super::grid::Buffer;
use super::rows::{scatter_row, wrap_row};
use super::shot::{Shot, Workspace};
use super::vector::{Kernel, Real, Vector};

/// Born modelling of one shot into `workspace.data`: the field and its perturbation side by side.
pub struct Born<'a, T> {
    /// The shot.
    pub shot: &'a Shot<'a, T>,
    /// Fields of the background.
    pub workspace: &'a mut Workspace<T>,
    /// Fields of the perturbation; its `data` receive the samples.
    pub perturbed: &'a mut Workspace<T>,
    /// Rows of the perturbation of `alpha`, laid out like `Coefficients::alpha`.
    pub d_alpha: &'a Buffer<T>,
    /// Rows of the perturbation of `kappa`, laid out like `Coefficients::kappa`.
    pub d_kappa: &'a Buffer<T>,
    /// Perturbation of the injection.
    pub d_injection: &'a [T],
}

impl<T: Real> Kernel<T> for Born<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<V: Vector<Elem = T>>(self) {
        let Self { shot, workspace, perturbed, d_alpha, d_kappa, d_injection } = self;
        let (l, c, nr) = (shot.layout, shot.coefficients, shot.receivers.len());
        workspace.fields.iter_mut().chain(&mut perturbed.fields).for_each(Buffer::clear);
        perturbed.data.resize(shot.nt * nr, T::default());
        let scattering = Shot { injection: d_injection, ..*shot };
        for m in 0..shot.nt {
            let now = m % 2;
            let [a, b] = &mut workspace.fields;
            let (field, out) =
                if now == 0 { (b.as_slice(), a.as_mut_slice()) } else { (a.as_slice(), b.as_mut_slice()) };
            let [a, b] = &mut perturbed.fields;
            let (d_field, d_out) =
                if now == 0 { (b.as_slice(), a.as_mut_slice()) } else { (a.as_slice(), b.as_mut_slice()) };
            unsafe { shot.step::<V>(m, d_field, d_out) };
            for (band, segments) in shot.windows.at(m) {
                for z in band.begin..band.end {
                    let alpha = &d_alpha.as_slice()[c.alpha_row[z]..];
                    let kappa = &d_kappa.as_slice()[c.kappa_row[z]..];
                    for &seg in segments {
                        unsafe { scatter_row::<V>(l, alpha, kappa, field, out, d_out, z, seg) };
                    }
                    wrap_row(l, d_out, z);
                }
            }
            scattering.inject(m, d_out);
            unsafe { shot.step::<V>(m, field, out) };
            shot.inject(m, out);
            for (d, &r) in perturbed.data[m * nr..][..nr].iter_mut().zip(shot.receivers) {
                *d = d_out[r];
            }
        }
    }
}

/// The field of one source, every `every`-th step handed to `visit(level, field)`.
pub struct Wavefield<'a, T, F> {
    /// The source.
    pub shot: &'a Shot<'a, T>,
    /// Fields.
    pub workspace: &'a mut Workspace<T>,
    /// Every how many steps.
    pub every: usize,
    /// Takes the level's number and the field.
    pub visit: F,
}

impl<T: Real, F: FnMut(usize, &[T])> Kernel<T> for Wavefield<'_, T, F> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<V: Vector<Elem = T>>(mut self) {
        self.workspace.fields.iter_mut().for_each(Buffer::clear);
        let [even, odd] = &mut self.workspace.fields;
        for m in 0..self.shot.nt {
            let (field, out) =
                if m % 2 == 0 { (odd.as_slice(), even.as_mut_slice()) } else { (even.as_slice(), odd.as_mut_slice()) };
            unsafe { self.shot.step::<V>(m, field, out) };
            self.shot.inject(m, out);
            if m % self.every == 0 {
                (self.visit)(m / self.every, out);
            }
        }
    }
}
