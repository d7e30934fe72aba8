//! Several priors as one: the mean or the median of their maps.

use super::{Prediction, Prior};
use crate::{Error, Family, Observed, Result};
use ndarray::Array2;

/// How maps are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Combine {
    /// The mean of every cell.
    #[default]
    Mean,
    /// The median of every cell; of an even number, the mean of the middle two.
    Median,
}

impl Combine {
    fn of(self, values: &mut [f32]) -> f32 {
        let n = values.len();
        match self {
            Self::Mean => values.iter().sum::<f32>() / n as f32,
            Self::Median => {
                values.sort_by(f32::total_cmp);
                (values[(n - 1) / 2] + values[n / 2]) / 2.0
            }
        }
    }

    fn maps(self, maps: &[&Array2<f32>]) -> Option<Array2<f32>> {
        let mut values = vec![0.0; maps.len()];
        let shape = maps.first()?.dim();
        Some(Array2::from_shape_fn(shape, |at| {
            values.iter_mut().zip(maps).for_each(|(v, m)| *v = m[at]);
            self.of(&mut values)
        }))
    }

    /// One prediction of several: maps and errors cell by cell, probabilities as their mean. What a prediction lacks,
    /// the others decide.
    pub(super) fn predictions(self, all: &[Prediction]) -> Prediction {
        let velocities: Vec<&Array2<f32>> = all.iter().map(|p| &p.velocity).collect();
        let errors: Vec<&Array2<f32>> = all.iter().filter_map(|p| p.error.as_ref()).collect();
        Prediction {
            velocity: self.maps(&velocities).expect("there is one at least"),
            error: self.maps(&errors),
            families: mean_families(all),
        }
    }
}

fn mean_families(all: &[Prediction]) -> Option<Vec<(Family, f64)>> {
    let lists: Vec<&Vec<(Family, f64)>> = all.iter().filter_map(|p| p.families.as_ref()).collect();
    let n = lists.len() as f64;
    let mut mean: Vec<(Family, f64)> = lists.first()?.iter().map(|&(f, _)| (f, 0.0)).collect();
    for &&(family, q) in lists.iter().flat_map(|l| l.iter()).collect::<Vec<_>>().iter() {
        match mean.iter_mut().find(|(f, _)| *f == family) {
            Some((_, sum)) => *sum += q / n,
            None => mean.push((family, q / n)),
        }
    }
    Some(mean)
}

/// Several priors as one.
pub struct Combined {
    priors: Vec<Box<dyn Prior>>,
    how: Combine,
}

impl Combined {
    /// Errors: [`Error::Usage`] without a prior.
    pub fn new(priors: Vec<Box<dyn Prior>>, how: Combine) -> Result<Self> {
        match priors.is_empty() {
            true => Err(Error::Usage("name a prior at least".into())),
            false => Ok(Self { priors, how }),
        }
    }
}

impl Prior for Combined {
    fn describe(&self) -> String {
        let names: Vec<String> = self.priors.iter().map(|p| p.describe()).collect();
        let how = if self.how == Combine::Mean { "mean" } else { "median" };
        format!("{how} of {}", names.join(", "))
    }

    fn predict(&self, gathers: &[Observed]) -> Result<Vec<Prediction>> {
        let predict = |g: &Observed| {
            let all: Vec<Prediction> =
                self.priors.iter().map(|p| super::predict_one(&**p, g)).collect::<Result<_>>()?;
            Ok(self.how.predictions(&all))
        };
        gathers.iter().map(predict).collect()
    }

    fn bytes(&self) -> u64 {
        self.priors.iter().map(|p| p.bytes()).sum()
    }

    /// They predict one after the other.
    fn bytes_each(&self) -> u64 {
        self.priors.iter().map(|p| p.bytes_each()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Constant;
    use super::*;

    fn combined(how: Combine, list: Vec<Constant>) -> Prediction {
        let priors = list.into_iter().map(|c| Box::new(c) as Box<dyn Prior>).collect();
        let gather = Observed::new(crate::Gather::new(ndarray::Array3::ones((1, 1, 1))));
        super::super::predict_one(&Combined::new(priors, how).unwrap(), &gather).unwrap()
    }

    #[test]
    fn mean_and_median() {
        let list = || vec![Constant(1.0, None, None), Constant(9.0, Some(4.0), None), Constant(2.0, Some(6.0), None)];
        let mean = combined(Combine::Mean, list());
        assert_eq!((mean.velocity[[0, 0]], mean.error.unwrap()[[1, 2]]), (4.0, 5.0));
        assert_eq!(combined(Combine::Median, list()).velocity[[1, 1]], 2.0);
        let even = vec![Constant(1.0, None, None), Constant(4.0, None, None)];
        assert_eq!(combined(Combine::Median, even).velocity[[0, 0]], 2.5);
        assert!(Combined::new(vec![], Combine::Mean).is_err());
    }

    #[test]
    fn probabilities_are_averaged_over_those_that_have_them() {
        let (a, b, c) = (Family::StyleA, Family::StyleB, Family::FlatVelA);
        let list = vec![
            Constant(1.0, None, Some(vec![(a, 0.2), (b, 0.8)])),
            Constant(1.0, None, None),
            Constant(1.0, None, Some(vec![(b, 0.4), (c, 0.6)])),
        ];
        let families = combined(Combine::Mean, list).families.unwrap();
        let of = |f| families.iter().find(|(g, _)| *g == f).unwrap().1;
        assert!((of(a) - 0.1).abs() < 1e-12 && (of(b) - 0.6).abs() < 1e-12 && (of(c) - 0.3).abs() < 1e-12);
    }
}
