//! Figures of shot gathers.

use super::axis::{Axis, number, power_of_ten};
use super::canvas::{Canvas, TITLE, text_width};
use super::colour::{ColourMap, ColourScale, percentile};
use super::panel::{Panel, Quantity, Row, panel_length};
use crate::gather::{Gather, Observed};
use crate::survey::Survey;
use crate::{Error, Result};
use ndarray::{Array2, ArrayView2};

const AMPLITUDE: Quantity = Quantity { name: "Amplitude", unit: "" };
const RESIDUAL: Quantity = Quantity { name: "Residual", unit: "" };
const TIME: Quantity = Quantity { name: "Time", unit: "s" };

/// Percentile of the magnitudes at which amplitudes are clipped.
const CLIP_PERCENT: f64 = 95.0;
/// More shots than these are thinned to as many, evenly spread.
const MOST_SHOTS: usize = 8;

/// Observed, synthetic and residual gather (time in s downwards, receiver position in m), as PNG bytes.
///
/// With `shot` (from 0) its three panels stand side by side; without, all shots stand side by side (8 evenly spread ones
/// where there are more) in three rows. Observed and synthetic share one symmetric scale, clipped at the 95th
/// percentile of the observed magnitudes; the residual `synthetic - observed` is drawn at a round gain on that scale which its
/// title states together with the rms over the samples that count. Samples that the mask leaves out are sand-coloured
/// where observed or subtracted. Without `synthetic` there is only the observed gather. Where receivers are not evenly spaced
/// from left to right the axis counts them.
///
/// # Errors
/// [`Error::Usage`] when a gather does not have the survey's shape or there is no such shot.
pub fn gather_figure(
    observed: &Observed,
    synthetic: Option<&Gather>,
    survey: &Survey,
    shot: Option<usize>,
) -> Result<Vec<u8>> {
    survey.validate()?;
    for (what, gather) in [("observed", Some(&*observed.gather)), ("synthetic", synthetic)] {
        if let Some((s, t, r)) = gather.map(|g| g.data.dim()).filter(|&d| d != survey.gather_shape()) {
            let (es, et, er) = survey.gather_shape();
            return Err(Error::Usage(format!(
                "the {what} gather has {s} shots x {t} samples x {r} receivers, the survey {es} x {et} x {er}; they must agree"
            )));
        }
    }
    let shots = chosen_shots(survey.sources.len(), shot)?;
    let data = Sections::new(observed, synthetic, &shots);
    let rows = if shot.is_some() { one_shot(&data, survey) } else { all_shots(&data, survey) };
    let width = rows.iter().map(Row::width).max().unwrap_or(1);
    let mut canvas = Canvas::new(width, rows.iter().map(Row::height).sum::<u32>() + 8)?;
    let mut y = 4;
    for row in rows {
        row.draw(&mut canvas, y);
        y += row.height() as i32;
    }
    canvas.png()
}

fn chosen_shots(n: usize, shot: Option<usize>) -> Result<Vec<usize>> {
    match shot {
        Some(i) if i >= n => Err(Error::Usage(format!("there is no shot {i}; the gather has shots 0 to {}", n - 1))),
        Some(i) => Ok(vec![i]),
        None if n <= MOST_SHOTS => Ok((0..n).collect()),
        None => Ok((0..MOST_SHOTS).map(|i| i * (n - 1) / (MOST_SHOTS - 1)).collect()),
    }
}

/// The samples to draw, shot by shot, with their scales.
struct Sections<'a> {
    shots: Vec<usize>,
    observed: Vec<Array2<f64>>,
    synthetic: Vec<ArrayView2<'a, f64>>,
    residual: Vec<Array2<f64>>,
    /// Residual rms of every drawn shot.
    rms: Vec<f64>,
    scale: ColourScale,
    gain: f64,
    residual_scale: ColourScale,
}

impl<'a> Sections<'a> {
    fn new(observed: &Observed, synthetic: Option<&'a Gather>, shots: &[usize]) -> Self {
        let masked = |shot: usize, data: Array2<f64>| {
            let mut data = data;
            for ((t, r), v) in data.indexed_iter_mut() {
                if t >= observed.mask.nt || !observed.mask.live[[shot, r]] {
                    *v = f64::NAN;
                }
            }
            data
        };
        let sections: Vec<_> = shots.iter().map(|&s| masked(s, observed.gather.shot(s).to_owned())).collect();
        let modelled: Vec<_> = synthetic.iter().flat_map(|g| shots.iter().map(|&s| g.shot(s))).collect();
        let residual: Vec<_> = sections.iter().zip(&modelled).map(|(obs, syn)| syn - obs).collect();
        let per_shot = synthetic.map(|g| observed.rms_per_shot(g)).unwrap_or_default();
        let rms = shots.iter().filter_map(|&s| per_shot.get(s).copied()).collect();

        let scale = ColourScale::symmetric(ColourMap::Grey, sections.iter().flatten().copied(), CLIP_PERCENT);
        let (clip, largest) = percentile(residual.iter().flatten().copied(), CLIP_PERCENT);
        let gain = round_gain(scale.hi / if clip > 0.0 { clip } else { largest });
        let residual_scale = ColourScale::clipped_at(ColourMap::Grey, scale.hi / gain, largest);
        Self {
            shots: shots.to_vec(),
            observed: sections,
            synthetic: modelled,
            residual,
            rms,
            scale,
            gain,
            residual_scale,
        }
    }

    /// Says at what multiple of the observed scale the residual is drawn.
    fn residual_name(&self) -> String {
        if self.gain == 1.0 { "Residual".into() } else { format!("Residual, gain {}", round_number(self.gain)) }
    }
}

/// The largest 1, 2 or 5 times a power of ten that is not above `gain`; 1 for no number.
fn round_gain(gain: f64) -> f64 {
    if !(gain.is_finite() && (1e-200..1e200).contains(&gain)) {
        return 1.0;
    }
    let decade = 10f64.powi(gain.log10().floor() as i32);
    [5.0, 2.0, 1.0].into_iter().map(|f| f * decade).find(|&g| g <= gain * (1.0 + 1e-9)).unwrap_or(decade)
}

/// A [`round_gain`] without needless zeros.
fn round_number(gain: f64) -> String {
    if (1e-3..1e5).contains(&gain) {
        return format!("{gain}");
    }
    let exponent = gain.log10().floor() as i32;
    format!("{:.0}×{}", gain / 10f64.powi(exponent), power_of_ten(exponent))
}

fn receiver_axis(survey: &Survey) -> (Axis, Quantity) {
    let x: Vec<f64> = survey.receivers.iter().map(|p| p.x as f64 * survey.dx).collect();
    let step = if x.len() > 1 { x[1] - x[0] } else { survey.dx };
    if step > 0.0 && x.windows(2).all(|w| (w[1] - w[0] - step).abs() < 1e-6 * step) {
        (Axis::nodes(x[0], step, x.len()), Quantity { name: "Receiver position", unit: "m" })
    } else {
        (Axis::nodes(0.0, 1.0, x.len()), Quantity { name: "Receiver", unit: "" })
    }
}

fn shot_title(survey: &Survey, shot: usize, width: u32) -> String {
    let long = format!("Shot {shot}, x = {} m", number(survey.sources[shot].x as f64 * survey.dx));
    if text_width(&long, TITLE) <= width { long } else { format!("Shot {shot}") }
}

/// One row: observed, synthetic, residual.
fn one_shot<'a>(data: &'a Sections, survey: &Survey) -> Vec<Row<'a>> {
    let shot = data.shots[0];
    let alone = data.synthetic.is_empty();
    let nr = survey.receivers.len();
    let size = (panel_length(nr, if alone { 560 } else { 420 }), panel_length(survey.nt, 640));
    let title = |name: &str| if alone { shot_title(survey, shot, u32::MAX) } else { name.to_string() };
    let mut panels = vec![Panel {
        data: data.observed[0].view(),
        title: title("Observed"),
        scale: &data.scale,
        bar: alone.then_some(AMPLITUDE),
    }];
    if let (Some(syn), Some(res)) = (data.synthetic.first(), data.residual.first()) {
        panels.push(Panel { data: *syn, title: "Synthetic".into(), scale: &data.scale, bar: Some(AMPLITUDE) });
        let title = format!("{}, rms {}", data.residual_name(), number(data.rms[0]));
        panels.push(Panel { data: res.view(), title, scale: &data.residual_scale, bar: Some(RESIDUAL) });
    }
    let name = (!alone).then(|| shot_title(survey, shot, u32::MAX));
    vec![Row { name, panels, size, x: receiver_axis(survey), y: time_axis(survey), numbered: true }]
}

fn time_axis(survey: &Survey) -> (Axis, Quantity) {
    (Axis::nodes(0.0, survey.dt, survey.nt), TIME)
}

/// Three rows (or one): a column a shot.
fn all_shots<'a>(data: &'a Sections, survey: &Survey) -> Vec<Row<'a>> {
    let alone = data.synthetic.is_empty();
    let nr = survey.receivers.len();
    let size = (panel_length(nr, 280), panel_length(survey.nt, 420));
    let row =
        |name: String, views: Vec<ArrayView2<'a, f64>>, titles: Vec<String>, scale: &'a ColourScale, bar, last| {
            let n = views.len();
            let panels = views
                .into_iter()
                .zip(titles)
                .enumerate()
                .map(|(i, (data, title))| Panel { data, title, scale, bar: (i + 1 == n).then_some(bar) })
                .collect();
            Row { name: Some(name), panels, size, x: receiver_axis(survey), y: time_axis(survey), numbered: last }
        };
    let headings: Vec<String> = data.shots.iter().map(|&s| shot_title(survey, s, size.0)).collect();
    let none = vec![String::new(); data.shots.len()];
    let observed = data.observed.iter().map(|a| a.view()).collect();
    let mut rows = vec![row("Observed".into(), observed, headings, &data.scale, AMPLITUDE, alone)];
    if !alone {
        let rms = data.rms.iter().map(|&r| format!("rms {}", number(r))).collect();
        let residual = data.residual.iter().map(|a| a.view()).collect();
        rows.push(row("Synthetic".into(), data.synthetic.clone(), none, &data.scale, AMPLITUDE, false));
        rows.push(row(data.residual_name(), residual, rms, &data.residual_scale, RESIDUAL, true));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gains_are_round_and_never_above() {
        for (gain, round) in [(46000.0, 20000.0), (50000.0, 50000.0), (1.0, 1.0), (0.7, 0.5), (9.99, 5.0)] {
            assert!((round_gain(gain) / round - 1.0).abs() < 1e-12, "{gain}");
        }
        assert_eq!((round_gain(f64::INFINITY), round_gain(f64::NAN), round_gain(0.0)), (1.0, 1.0, 1.0));
        let written = [2e4, 2e5, 0.5, round_gain(0.07), 1e-5].map(round_number);
        assert_eq!(written, ["20000", "2×10⁵", "0.5", "0.05", "1×10⁻⁵"]);
    }

    #[test]
    fn many_shots_are_thinned_evenly() {
        assert_eq!(chosen_shots(5, None).unwrap(), [0, 1, 2, 3, 4]);
        assert_eq!(chosen_shots(71, None).unwrap(), [0, 10, 20, 30, 40, 50, 60, 70]);
        assert_eq!(chosen_shots(5, Some(3)).unwrap(), [3]);
        assert!(chosen_shots(5, Some(5)).unwrap_err().to_string().contains("shots 0 to 4"));
    }
}
