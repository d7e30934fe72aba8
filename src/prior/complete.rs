//! A prior that tells a map alone, with another one's word on the rest.

use super::{Prediction, Prior, predict_or_none};
use crate::{Observed, Result};

/// A prior's maps, with the expected errors and families that it lacks from another one, the judge, unless that fails: see
/// [`Prediction::of_map`].
pub struct Completed {
    prior: Box<dyn Prior>,
    judge: Box<dyn Prior>,
}

impl Completed {
    /// `judge` tells what `prior` leaves out.
    pub fn new(prior: Box<dyn Prior>, judge: Box<dyn Prior>) -> Self {
        Self { prior, judge }
    }

    fn complete(&self, gather: &Observed, told: Prediction) -> Result<Prediction> {
        if told.error.is_some() && told.families.is_some() {
            return Ok(told);
        }
        let Some(judged) = predict_or_none(&*self.judge, gather)? else { return Ok(told) };
        let judged = judged.of_map(&told.velocity.mapv(f64::from))?;
        Ok(Prediction {
            error: told.error.or(judged.error),
            families: told.families.or(judged.families),
            velocity: told.velocity,
        })
    }
}

impl Prior for Completed {
    fn describe(&self) -> String {
        format!("{}; what it does not tell, by {}", self.prior.describe(), self.judge.describe())
    }

    fn predict(&self, gathers: &[Observed]) -> Result<Vec<Prediction>> {
        let told = self.prior.predict(gathers)?;
        gathers.iter().zip(told).map(|(gather, told)| self.complete(gather, told)).collect()
    }

    fn bytes(&self) -> u64 {
        self.prior.bytes() + self.judge.bytes()
    }

    fn bytes_each(&self) -> u64 {
        self.prior.bytes_each().max(self.judge.bytes_each())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{predict_one, tests::Constant};
    use super::*;
    use crate::{Family, Gather};
    use ndarray::{Array2, Array3};

    #[test]
    fn what_a_prior_does_not_tell_another_one_does() {
        let families = Some(vec![(Family::StyleA, 1.0)]);
        let gather = Observed::new(Gather::new(Array3::ones((1, 2, 3))));
        let judge = || Box::new(Constant(2000.0, Some(40.0), families.clone()));
        let told = |prior| predict_one(&Completed::new(Box::new(prior), judge()), &gather).unwrap();
        let map = |v| Array2::from_elem((2, 3), v);
        // a map 30 m/s from the judge's, whose error is 40
        let bare = told(Constant(2030.0, None, None));
        assert_eq!((bare.velocity, bare.error, bare.families), (map(2030.0), Some(map(50.0)), families.clone()));
        let own = Some(vec![(Family::StyleB, 1.0)]);
        let part = told(Constant(2030.0, None, own.clone()));
        assert_eq!((part.error, part.families), (Some(map(50.0)), own.clone()));
        let whole = told(Constant(2030.0, Some(7.0), own.clone()));
        assert_eq!((whole.error, whole.families), (Some(map(7.0)), own));
    }
}
