//! Models of several callers, and what is asked of a device about them.

use super::super::Propagator;
use super::queue::{Answer, Companion, Request};
use crate::{Gather, Misfit, Model, Observed, Result};
use std::ops::Range;

/// What is computed of the models, with what the caller lends for it.
#[derive(Clone, Copy)]
pub(super) enum Task<'a> {
    Gradient(&'a dyn Misfit),
    Forward,
    Born,
}

/// Models of several callers on their way through a device.
pub(super) struct Batch {
    pub(super) tickets: Vec<(u64, usize)>,
    pub(super) models: Vec<Model>,
    pub(super) observed: Vec<Observed>,
    pub(super) directions: Vec<Model>,
    pub(super) answers: Vec<Option<Result<Answer>>>,
}

impl Batch {
    pub(super) fn new(requests: Vec<Request>) -> Self {
        let n = requests.len();
        let mut batch = Self {
            tickets: Vec::with_capacity(n),
            models: Vec::with_capacity(n),
            observed: vec![],
            directions: vec![],
            answers: (0..n).map(|_| None).collect(),
        };
        for Request { call, place, model, companion } in requests {
            batch.tickets.push((call, place));
            batch.models.push(model);
            match companion {
                Companion::Nothing => {}
                Companion::Observed(o) => batch.observed.push(o),
                Companion::Direction(d) => batch.directions.push(d),
            }
        }
        batch
    }

    /// The answers with whom they are for, and the requests that have none.
    #[expect(clippy::type_complexity, reason = "taken apart at once")]
    pub(super) fn split(self) -> (Vec<(u64, usize, Result<Answer>)>, Vec<Request>) {
        let (mut done, mut left) = (vec![], vec![]);
        let (mut observed, mut directions) = (self.observed.into_iter(), self.directions.into_iter());
        for (((call, place), model), answer) in self.tickets.into_iter().zip(self.models).zip(self.answers) {
            let observed = observed.next().map(Companion::Observed);
            let companion =
                observed.or_else(|| directions.next().map(Companion::Direction)).unwrap_or(Companion::Nothing);
            match answer {
                Some(answer) => done.push((call, place, answer)),
                None => left.push(Request { call, place, model, companion }),
            }
        }
        (done, left)
    }
}

impl Task<'_> {
    pub(super) fn run(self, device: &dyn Propagator, batch: &Batch, range: Range<usize>) -> Result<Vec<Answer>> {
        let models = &batch.models[range.clone()];
        let gathers = |list: Vec<Gather>| list.into_iter().map(Answer::Gather).collect();
        match self {
            Self::Gradient(misfit) => device
                .misfit_and_gradient(models, &batch.observed[range], misfit)
                .map(|list| list.into_iter().map(|e| Answer::Evaluation(Box::new(e))).collect()),
            Self::Forward => device.forward(models).map(gathers),
            Self::Born => device.born(models, &batch.directions[range]).map(gathers),
        }
    }
}
