//! The figures as a caller gets them: decodable, of sane size, with the colours of their scales, whatever the data.

use fwi::plot::{
    CurvePanel, Progress, Scale, StageStart, contact_sheet, contact_sheet_in_rows, convergence_figure, curves_figure,
    gather_figure, map_figure, uncertainty_figure,
};
use fwi::{Error, Gather, Observed, Position, Survey};
use image::{Rgb, RgbImage};
use ndarray::{Array2, Array3, array, s};

const PURPLE: Rgb<u8> = Rgb([68, 1, 84]);
const BLUE: Rgb<u8> = Rgb([31, 119, 180]);
const ORANGE: Rgb<u8> = Rgb([214, 96, 20]);

fn decode(png: Vec<u8>) -> RgbImage {
    let image = image::load_from_memory_with_format(&png, image::ImageFormat::Png).expect("a PNG file").to_rgb8();
    let sane = 150..=6000;
    assert!(sane.contains(&image.width()) && sane.contains(&image.height()), "{:?}", image.dimensions());
    image
}

fn count(image: &RgbImage, colour: Rgb<u8>) -> usize {
    image.pixels().filter(|&&p| p == colour).count()
}

/// 70 x 70 cells, 1500 m/s above 4500 m/s.
fn two_layers() -> Array2<f64> {
    Array2::from_shape_fn((70, 70), |(z, _)| if z < 35 { 1500.0 } else { 4500.0 })
}

fn survey(nt: usize) -> Survey {
    Survey { nt, ..Survey::openfwi() }
}

fn pressure(survey: &Survey) -> Gather {
    Gather::new(Array3::from_shape_fn(survey.gather_shape(), |(s, t, r)| ((s * 31 + t * 7 + r) as f64 * 0.1).sin()))
}

#[test]
fn a_map_is_drawn_upright_in_whole_blocks() {
    let image = decode(map_figure(two_layers().view(), 10.0, None, None).unwrap());
    let purple: Vec<_> = image.enumerate_pixels().filter(|p| *p.2 == PURPLE).map(|(x, y, _)| (x, y)).collect();
    // 8 pixels a cell, plus the low end of the colour bar.
    assert!(purple.len() >= 35 * 70 * 64);
    let (left, top) = purple[0];
    for (z, x) in [(0, 0), (34, 69), (17, 30)] {
        assert_eq!(*image.get_pixel(left + 8 * x + 4, top + 8 * z + 4), PURPLE);
    }
    let fast = *image.get_pixel(left, top + 8 * 35);
    assert_eq!(fast, *image.get_pixel(left + 559, top + 559));
    assert_ne!(fast, PURPLE);
}

#[test]
fn standard_deviations_begin_at_zero() {
    let deviations = Array2::from_shape_fn((70, 70), |(z, _)| if z < 35 { 0.0 } else { 80.0 });
    let image = decode(uncertainty_figure(deviations.view(), 10.0, "Expected MAE 32 m/s").unwrap());
    assert!(count(&image, PURPLE) >= 35 * 70 * 64);
    // cells that are alike are not taken for zero
    let alike = decode(uncertainty_figure(Array2::from_elem((70, 70), 80.0).view(), 10.0, "").unwrap());
    assert!(count(&alike, PURPLE) < 1000, "only the end of the colour bar");
    assert!(matches!(uncertainty_figure(Array2::zeros((0, 3)).view(), 10.0, ""), Err(Error::Usage(_))));
}

#[test]
fn the_difference_is_white_where_maps_agree_and_red_where_too_fast() {
    let truth = two_layers();
    let mut map = truth.clone();
    map.slice_mut(s![.., ..10]).mapv_inplace(|v| v + 100.0);
    let image = decode(map_figure(map.view(), 10.0, None, Some(truth.view())).unwrap());
    let (red, blue) = (Rgb([103, 0, 31]), Rgb([5, 48, 97]));
    assert!(count(&image, red) >= 70 * 10 * 36);
    assert!(count(&image, blue) < 200, "only the end of the colour bar");
    let four = decode(map_figure(map.view(), 10.0, Some(truth.view()), Some(truth.view())).unwrap());
    assert!(four.width() > image.width() + 420 && four.height() == image.height());
}

#[test]
fn cells_without_a_number_are_grey() {
    let grey = Rgb([150, 150, 150]);
    let mut map = two_layers();
    let before = count(&decode(map_figure(map.view(), 10.0, None, None).unwrap()), grey);
    map[[3, 4]] = f64::NAN;
    map[[3, 5]] = f64::INFINITY;
    let after = count(&decode(map_figure(map.view(), 10.0, None, None).unwrap()), grey);
    assert_eq!(after - before, 2 * 64);
}

#[test]
fn odd_maps_are_drawn() {
    let shapes = [(1, 70), (70, 1), (33, 91), (3, 2000), (1500, 1)].map(|shape| (shape, 3000.0));
    let values = [0.0, 1e300, -f64::MAX, f64::NAN].map(|value| ((2, 1), value));
    for (shape, value) in shapes.into_iter().chain(values) {
        let mut map = Array2::from_elem(shape, value);
        decode(map_figure(map.view(), 10.0, None, Some(map.view())).unwrap());
        map[[0, 0]] = f64::MAX;
        let other = Array2::from_elem(shape, -1.0);
        decode(map_figure(map.view(), 1e-12, Some(other.view()), Some(other.view())).unwrap());
    }
    decode(map_figure(array![[1.0]].view(), f64::MAX, None, None).unwrap());
}

#[test]
fn maps_that_cannot_be_drawn_are_refused() {
    let map = two_layers();
    let wrong = Array2::zeros((70, 69));
    let cases = [
        (map_figure(Array2::zeros((0, 70)).view(), 10.0, None, None), "0 x 70"),
        (map_figure(map.view(), f64::NAN, None, None), "cell size"),
        (map_figure(map.view(), 10.0, None, Some(wrong.view())), "true map has 70 x 69"),
        (map_figure(map.view(), 10.0, Some(wrong.view()), None), "starting map has 70 x 69"),
    ];
    for (result, words) in cases {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Usage(_)) && error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_residual_is_drawn_at_a_gain_that_shows_it() {
    let survey = survey(200);
    let observed = Observed::new(pressure(&survey));
    let mut synthetic = (*observed.gather).clone();
    let all = decode(gather_figure(&observed, Some(&synthetic), &survey, None).unwrap());
    let alone = decode(gather_figure(&observed, None, &survey, None).unwrap());
    assert!(all.height() > 2 * alone.height());
    // No residual: the third row is zero's grey, five panels of 280 x 400 pixels.
    let zero = Rgb([128; 3]);
    assert!(count(&all, zero) >= 5 * 280 * 400);
    assert!(count(&alone, zero) < 5 * 280 * 40);
    synthetic.data.mapv_inplace(|v| v * (1.0 + 1e-6));
    let gained = decode(gather_figure(&observed, Some(&synthetic), &survey, None).unwrap());
    assert!(count(&gained, zero) < count(&all, zero) / 4);
    let one = decode(gather_figure(&observed, Some(&synthetic), &survey, Some(4)).unwrap());
    assert!(one.width() > 3 * 420 && one.height() < all.height());
}

#[test]
fn masked_samples_stand_out() {
    let survey = survey(200);
    let mut gather = pressure(&survey);
    gather.data.slice_mut(s![.., 199, ..]).fill(0.0);
    gather.data.slice_mut(s![1, .., 7]).fill(f64::NAN);
    gather.data.slice_mut(s![2, .., 8]).fill(0.0);
    let observed = Observed::new(gather);
    let image = decode(gather_figure(&observed, None, &survey, None).unwrap());
    // Two traces of 4 x 400 pixels and a last sample of 280 x 2 pixels in each shot, less what they share.
    let sand = Rgb([222, 196, 150]);
    assert_eq!(observed.mask.nt, 199);
    assert_eq!(count(&image, sand), 2 * 4 * 400 + 5 * 280 * 2 - 2 * 4 * 2);
}

#[test]
fn odd_gathers_are_drawn() {
    let one = Survey { sources: vec![Position { z: 0, x: 3 }], ..survey(1) };
    let crooked = Survey {
        receivers: [9, 3, 60].map(|x| Position { z: 5, x }).to_vec(),
        sources: vec![Position { z: 0, x: 3 }; 11],
        ..survey(900)
    };
    for survey in [one, crooked] {
        let zero = Gather::new(Array3::zeros(survey.gather_shape()));
        for (value, shot) in [(0.0, None), (1e300, Some(0)), (f64::NAN, None)] {
            let gather = Gather::new(Array3::from_elem(survey.gather_shape(), value));
            let observed = Observed::new(gather.clone());
            decode(
                gather_figure(&observed, Some(if shot.is_some() { &zero } else { &gather }), &survey, shot).unwrap(),
            );
        }
        decode(gather_figure(&Observed::new(zero), None, &survey, None).unwrap());
    }
}

#[test]
fn gathers_that_do_not_match_are_refused() {
    let short = survey(50);
    let observed = Observed::new(pressure(&short));
    let other = pressure(&survey(51));
    let error = gather_figure(&observed, Some(&other), &short, None).unwrap_err().to_string();
    assert!(error.contains("synthetic gather has 5 shots x 51 samples"), "{error}");
    let error = gather_figure(&observed, None, &short, Some(5)).unwrap_err().to_string();
    assert!(error.contains("no shot 5"), "{error}");
}

#[test]
fn convergence_shows_curves_and_stages() {
    let history: Vec<_> = (0..50)
        .map(|i| Progress { evaluations: 3 * i, rms: 0.8f64.powi(i as i32), mae: Some(300.0 / (1 + i) as f64) })
        .collect();
    let stages =
        [(0, "below 8 Hz"), (70, "full band")].map(|(evaluations, name)| StageStart { evaluations, name: name.into() });
    let both = decode(convergence_figure(&history, &stages).unwrap());
    assert!(count(&both, BLUE) > 1000 && count(&both, ORANGE) > 1000 && count(&both, Rgb([120; 3])) > 500);
    let blind: Vec<_> = history.iter().map(|p| Progress { mae: None, ..*p }).collect();
    let rms = decode(convergence_figure(&blind, &[]).unwrap());
    assert!(rms.height() + 250 < both.height() && count(&rms, ORANGE) == 0 && count(&rms, BLUE) > 1000);
}

#[test]
fn odd_histories_are_drawn() {
    assert_eq!(count(&decode(convergence_figure(&[], &[]).unwrap()), BLUE), 0);
    for value in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MAX, 5e-324, 1.0] {
        let p = Progress { evaluations: 7, rms: value, mae: Some(value) };
        let late = Progress { evaluations: usize::MAX, ..p };
        let stages = vec![StageStart { evaluations: usize::MAX, name: "long ".repeat(100) }; 9];
        for (history, stages) in [(vec![p], &stages[..0]), (vec![p, p, late], &stages[..])] {
            let drawn = count(&decode(convergence_figure(&history, stages).unwrap()), BLUE);
            assert_eq!(drawn > 0, value.is_finite() && value > 0.0, "{value}");
        }
    }
}

#[test]
fn a_contact_sheet_holds_every_map() {
    let maps = Array3::from_shape_fn((23, 70, 70), |(i, _, x)| if x < 35 { 1500.0 } else { 2000.0 + i as f64 });
    let captions: Vec<_> = (0..23).map(|i| format!("FlatVel_A {i}, with more words than there is room for")).collect();
    let image = decode(contact_sheet(maps.view(), &captions).unwrap());
    let cells = 23 * 35 * 70 * 4;
    assert!((cells..cells + 2000).contains(&count(&image, PURPLE)));
    decode(contact_sheet(Array3::from_elem((1, 1, 1), f64::NAN).view(), &[String::new()]).unwrap());
    let captions = ["x".repeat(100_000), "a\nb".into(), "é".into()];
    decode(contact_sheet(Array3::from_elem((3, 1, 500), 1e300).view(), &captions).unwrap());
}

#[test]
fn sheets_that_cannot_be_drawn_are_refused() {
    let none = contact_sheet(Array3::zeros((0, 70, 70)).view(), &[]).unwrap_err().to_string();
    assert!(none.contains("0 maps"), "{none}");
    let few = contact_sheet(Array3::zeros((2, 7, 7)).view(), &["a".into()]).unwrap_err().to_string();
    assert!(few.contains("as many captions"), "{few}");
    let many = contact_sheet(Array3::zeros((5000, 1, 1)).view(), &vec![String::new(); 5000]).unwrap_err().to_string();
    assert!(many.contains("plot fewer"), "{many}");
}

#[test]
fn rows_of_a_sheet_hold_their_own_maps() {
    let maps = Array3::from_shape_fn((5, 70, 70), |(i, _, x)| if x < 35 { 1500.0 } else { 2000.0 + i as f64 });
    let captions: Vec<String> = (0..5).map(|i| i.to_string()).collect();
    let rows = [("FlatVel_A".to_string(), vec![0, 2, 4]), ("a long name of a family that never ends".into(), vec![1])];
    let image = decode(contact_sheet_in_rows(maps.view(), &captions, &rows).unwrap());
    let cells = 4 * 35 * 70 * 4;
    assert!((cells..cells + 2000).contains(&count(&image, PURPLE)));
    for bad in [vec![], vec![("x".to_string(), vec![5])], vec![("x".to_string(), vec![])]] {
        assert!(contact_sheet_in_rows(maps.view(), &captions, &bad).is_err());
    }
    assert!(contact_sheet_in_rows(maps.view(), &captions[..4], &rows).is_err());
}

#[test]
fn curves_are_drawn_whatever_they_hold() {
    let scale = |log| Scale { name: "Value", unit: "m/s", log, downwards: !log };
    let panel = |log, curves| CurvePanel { title: "Curves", x: scale(log), y: scale(log), curves };
    let line = vec![(1.0, 2.0), (2.0, 30.0), (500.0, 4.0)];
    let odd = vec![(f64::NAN, 1.0), (-1.0, 0.0), (1e300, f64::INFINITY), (0.0, 5e-324)];
    let names = ["a file".to_string(), "x".repeat(5000)];
    let panels = [panel(false, vec![line.clone(), odd.clone()]), panel(true, vec![line.clone(), odd.clone()])];
    let image = decode(curves_figure(&panels, &names).unwrap());
    assert!(count(&image, BLUE) > 1000);
    decode(curves_figure(&[panel(true, vec![odd, vec![]])], &names).unwrap());
    assert!(curves_figure(&panels, &names[..1]).is_err() && curves_figure(&[], &names).is_err());
}
