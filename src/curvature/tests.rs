use super::*;
use crate::synth;
use crate::{Family, Gather};
use ndarray::Array2;

fn curvature(survey: &Survey, margin: usize) -> Curvature {
    Curvature::new(survey, &CurvatureOptions { margin, ..CurvatureOptions::default() }).unwrap()
}

/// `|J dm|^2` by the normal matrix against that of Born modelling, for directions of several kinds.
#[test]
fn normal_matrix_is_that_of_born_modelling() {
    let survey = Survey::openfwi();
    let model = Model::from_map(synth::draw(Family::CurveFaultB, 3, 1).mapv(f64::from));
    let born = build(survey.clone(), &CpuOptions::default()).unwrap();
    let mask = Mask::all(survey.gather_shape());
    let wave =
        |a: f64, b: f64| Array2::from_shape_fn((70, 70), |(z, x)| (a * z as f64).sin() * (b * x as f64 + 1.0).cos());
    let mut corner = Array2::zeros((70, 70));
    corner[[69, 69]] = 1.0;
    let mut source = Array2::zeros((70, 70));
    source[[1, 17]] = 1.0;
    let directions = [wave(0.1, 0.07), wave(1.3, 0.9), wave(0.4, 2.0), corner, source];
    let margins: Vec<usize> =
        std::env::var("M").map(|m| m.split(',').map(|x| x.parse().unwrap()).collect()).unwrap_or(vec![48]);
    for margin in margins {
        let (h, parts) =
            curvature(&survey, margin).normal_matrix(&model, &mask, &Columns::Cells { cells: 4900 }).unwrap();
        eprintln!("{margin} {parts:?}");
        for d in &directions {
            let x: Vec<f64> = d.iter().copied().collect();
            let by_matrix: f64 = h.times(&x).iter().zip(&x).map(|(a, b)| a * b).sum();
            let dm = Model { vp: d.clone(), vmin: 0.0 };
            let data: Gather = born.born(std::slice::from_ref(&model), &[dm]).unwrap().remove(0);
            let exact = data.dot(&data);
            let back = born.adjoint(std::slice::from_ref(&model), &[data]).unwrap().remove(0);
            let hx = h.times(&x);
            let (num, den) =
                hx.iter().zip(&back.vp).fold((0.0, 0.0), |(a, b), (x, y)| (a + (x - y).powi(2), b + y * y));
            eprintln!(
                "{by_matrix:e} {exact:e} {:.2e} | Hx rel {:.2e}",
                by_matrix / exact - 1.0,
                (num / den as f64).sqrt()
            );
        }
    }
}
