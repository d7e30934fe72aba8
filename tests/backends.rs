//! Every implementation of the operator against the f64 reference.

mod common;

use common::{max_relative, random_case, survey};
use fwi::misfit::{L2, Misfit};
use fwi::wave::cpu::vector::Isa;
use fwi::wave::{Cpu, CpuOptions, Fidelity, FieldView, Precision, Propagator, Reference};
use fwi::{Gather, Mask, Observed, Position, Survey};
use std::collections::BTreeMap;
use std::sync::Mutex;

fn exact(isa: Isa) -> CpuOptions {
    let fidelity = Some(Fidelity::Exact);
    CpuOptions { precision: Precision::F64, fidelity, threads: 2, isa: Some(isa), ..Default::default() }
}

/// Odd sizes, one shot, sources on edges and corners, a wave that wraps around the torus.
fn cases() -> Vec<Survey> {
    vec![
        survey(12, 17, 6, 230, &[(0, 0)], &[(0, 3), (11, 16), (5, 5)]),
        survey(31, 5, 7, 150, &[(30, 4), (1, 0)], &[(1, 1), (1, 1)]),
        survey(1, 1, 9, 60, &[(0, 0)], &[(0, 0)]),
        survey(9, 40, 11, 301, &[(0, 39), (8, 0), (4, 20)], &[(0, 0), (0, 39), (8, 21)]),
        survey(23, 23, 8, 1, &[(3, 3)], &[(3, 3), (3, 4)]),
    ]
}

#[test]
fn every_instruction_set_matches_the_reference_in_f64() {
    for (seed, survey) in cases().into_iter().enumerate() {
        let (model, dm, observed) = random_case(&survey, seed as u64);
        let reference = Reference::new(survey.clone()).unwrap();
        let forward = reference.forward(std::slice::from_ref(&model)).unwrap().remove(0);
        let born = reference.born(std::slice::from_ref(&model), std::slice::from_ref(&dm)).unwrap().remove(0);
        let gradient = reference
            .misfit_and_gradient(std::slice::from_ref(&model), std::slice::from_ref(&observed), &L2)
            .unwrap()
            .remove(0);
        for isa in Isa::available() {
            let cpu = Cpu::<f64>::new(survey.clone(), &exact(isa)).unwrap();
            let f = cpu.forward(std::slice::from_ref(&model)).unwrap().remove(0);
            assert!(max_relative(&f.data, &forward.data) < 1e-12, "forward, case {seed}, {isa}");
            let b = cpu.born(std::slice::from_ref(&model), std::slice::from_ref(&dm)).unwrap().remove(0);
            assert!(
                max_relative(&b.data, &born.data) < 1e-12,
                "Born, case {seed}, {isa}: {}",
                max_relative(&b.data, &born.data)
            );
            let g = cpu
                .misfit_and_gradient(std::slice::from_ref(&model), std::slice::from_ref(&observed), &L2)
                .unwrap()
                .remove(0);
            assert!((g.value / gradient.value - 1.0).abs() < 1e-12, "misfit, case {seed}, {isa}");
            let e = max_relative(&g.gradient.vp, &gradient.gradient.vp);
            assert!(e < 1e-12, "gradient, case {seed}, {isa}: {e:e}");
            let (a, b) = (g.gradient.vmin, gradient.gradient.vmin);
            assert!(
                (a - b).abs()
                    <= 1e-12 * b.abs().max(1e-3 * gradient.gradient.vp.iter().fold(0.0, |m: f64, x| m.max(x.abs()))),
                "vmin, case {seed}, {isa}: {a:e} {b:e}"
            );
            assert_eq!(g.data_rms, observed.rms(&f), "case {seed}, {isa}");
        }
    }
}

#[test]
fn wavefields_match_the_reference() {
    let survey = cases().remove(3);
    let (model, _, _) = random_case(&survey, 3);
    let sources = [Position { z: 2, x: 7 }, Position { z: 0, x: 39 }, Position { z: 8, x: 0 }];
    let levels = |p: &dyn Propagator| {
        let kept = Mutex::new(BTreeMap::new());
        let visit = |source: usize, level: usize, field: FieldView| {
            assert!(kept.lock().unwrap().insert((source, level), field.to_f64()).is_none());
        };
        p.wavefields(&model, &sources, &[1.0, -0.5], 7, &visit).unwrap();
        kept.into_inner().unwrap()
    };
    let reference = levels(&Reference::new(survey.clone()).unwrap());
    assert_eq!(reference.len(), 3 * 301usize.div_ceil(7));
    for threads in [1, 2] {
        let cpu = Cpu::<f64>::new(survey.clone(), &CpuOptions { threads, ..exact(Isa::best()) }).unwrap();
        let fields = levels(&cpu);
        assert!(reference.keys().eq(fields.keys()));
        for (key, field) in &reference {
            assert!(max_relative(&fields[key], field) < 1e-12, "source and level {key:?}");
        }
        let outside = cpu.wavefields(&model, &[Position { z: 9, x: 0 }], &[1.0], 1, &|_, _, _| {}).unwrap_err();
        assert!(outside.to_string().contains("outside"), "{outside}");
    }
}

#[test]
fn bits_do_not_depend_on_threads_batch_or_memory() {
    let survey = cases().remove(3);
    let (model, _, observed) = random_case(&survey, 5);
    let (other, _, _) = random_case(&survey, 6);
    for (precision, fidelity) in [(Precision::F32, Fidelity::Fast), (Precision::F64, Fidelity::Exact)] {
        let with = |threads, max_bytes| {
            let options = CpuOptions { precision, fidelity: Some(fidelity), threads, max_bytes, isa: None };
            fwi::wave::build(survey.clone(), &options).unwrap()
        };
        let alone = with(1, 1 << 30)
            .misfit_and_gradient(std::slice::from_ref(&model), std::slice::from_ref(&observed), &L2)
            .unwrap();
        let synthetic = with(1, 1 << 30).forward(std::slice::from_ref(&model)).unwrap().remove(0);
        for threads in [1, 2, 3, 8] {
            for max_bytes in [1500 << 10, 3 << 20, 1 << 30] {
                let cpu = with(threads, max_bytes);
                let batch = [other.clone(), model.clone(), other.clone()];
                let obs = [observed.clone(), observed.clone(), observed.clone()];
                let b = cpu.misfit_and_gradient(&batch, &obs, &L2).unwrap();
                assert_eq!(b[1].gradient, alone[0].gradient, "{threads} threads, {max_bytes} bytes");
                assert_eq!(b[1].value, alone[0].value);
                assert_eq!(b[1].data_rms, alone[0].data_rms);
                assert_eq!(cpu.forward(&batch).unwrap()[1], synthetic);
            }
        }
    }
}

#[test]
fn senseless_requests_are_refused_with_numbers() {
    let survey = cases().remove(0);
    let cpu = |s: Survey| Cpu::<f32>::new(s, &CpuOptions::default());
    let (mut model, _, _) = random_case(&survey, 1);
    model.vp[[2, 2]] = 9000.0;
    let e = cpu(survey.clone()).unwrap().forward(std::slice::from_ref(&model)).unwrap_err().to_string();
    assert!(e.contains("unstable") && e.contains("9000"), "{e}");
    model.vp[[2, 2]] = 300.0;
    let e = cpu(survey.clone()).unwrap().forward(std::slice::from_ref(&model)).unwrap_err().to_string();
    assert!(e.contains("undersampled") && e.contains("300"), "{e}");
    model.vp[[2, 2]] = f64::NAN;
    assert!(cpu(survey.clone()).unwrap().forward(&[model]).unwrap_err().to_string().contains("row 2, column 2"));
    let outside = Survey { sources: vec![Position { z: 50, x: 0 }], ..survey.clone() };
    assert!(cpu(outside).err().unwrap().to_string().contains("outside"));
    let tiny = CpuOptions { max_bytes: 1000, ..Default::default() };
    let e = Cpu::<f32>::new(survey, &tiny).err().unwrap();
    assert_eq!(e.exit_code(), 5);
}

#[test]
fn masked_samples_do_not_count() {
    let survey = cases().remove(3);
    let (model, _, observed) = random_case(&survey, 8);
    let cpu = Cpu::<f64>::new(survey, &exact(Isa::best())).unwrap();
    let mut data = observed.gather.data.clone();
    let last = data.dim().1 - 1;
    data.slice_mut(ndarray::s![.., last, ..]).fill(0.0);
    data[[1, 40, 2]] = f64::NAN;
    data.slice_mut(ndarray::s![0, .., 0]).fill(0.0);
    let masked = Observed::new(Gather::new(data.clone()));
    assert_eq!((masked.mask.nt, &masked.bad[..], &masked.dead[..]), (last, &[(1, 2)][..], &[(0, 0)][..]));
    let mut counted = Mask::all(data.dim());
    counted.nt = last;
    counted.live[[1, 2]] = false;
    counted.live[[0, 0]] = false;
    assert_eq!(masked.mask, counted);
    let a =
        cpu.misfit_and_gradient(std::slice::from_ref(&model), std::slice::from_ref(&masked), &L2).unwrap().remove(0);
    let by_hand = 0.5 * a.data_rms.powi(2) * masked.mask.samples() as f64;
    assert!((a.value / by_hand - 1.0).abs() < 1e-12);
    assert_eq!(L2.name(), "l2");
}
