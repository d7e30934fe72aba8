//! So many predictions at a time and no more, whoever asks.

use super::{Prediction, Prior};
use crate::{Observed, Result};
use std::sync::{Condvar, Mutex, PoisonError};

/// A prior whose predictions wait for each other, so that no more of them are at work than there is memory for.
pub struct InTurns {
    prior: Box<dyn Prior>,
    at_a_time: usize,
    free: Mutex<usize>,
    freed: Condvar,
}

/// The right to predict, given back when it goes.
struct Turn<'a>(&'a InTurns);

impl InTurns {
    /// `at_a_time` calls of [`Prior::predict`] at most are answered at the same time, one at least.
    pub fn new(prior: Box<dyn Prior>, at_a_time: usize) -> Self {
        let at_a_time = at_a_time.max(1);
        Self { prior, at_a_time, free: Mutex::new(at_a_time), freed: Condvar::new() }
    }

    fn turn(&self) -> Turn<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

impl Prior for InTurns {
    fn describe(&self) -> String {
        self.prior.describe()
    }

    fn predict(&self, gathers: &[Observed]) -> Result<Vec<Prediction>> {
        let _turn = self.turn();
        self.prior.predict(gathers)
    }

    /// With all predictions at a time.
    fn bytes(&self) -> u64 {
        self.prior.bytes() + self.at_a_time as u64 * self.prior.bytes_each()
    }

    fn bytes_each(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts how many are in it, and the most that were.
    #[derive(Default)]
    struct Busy(AtomicUsize, AtomicUsize);

    impl Prior for Busy {
        fn describe(&self) -> String {
            "busy".into()
        }
        fn predict(&self, _: &[Observed]) -> Result<Vec<Prediction>> {
            let now = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            self.1.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(5));
            self.0.fetch_sub(1, Ordering::SeqCst);
            Ok(vec![])
        }
        fn bytes(&self) -> u64 {
            100
        }
        fn bytes_each(&self) -> u64 {
            10
        }
    }

    #[test]
    fn no_more_at_a_time_than_there_are_turns() {
        let busy = Arc::new(Busy::default());
        let prior = InTurns::new(Box::new(busy.clone()), 2);
        assert_eq!(prior.bytes(), 120);
        std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| prior.predict(&[]).unwrap()))));
        assert_eq!((busy.0.load(Ordering::SeqCst), busy.1.load(Ordering::SeqCst)), (0, 2));
    }
}
