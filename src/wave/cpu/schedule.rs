//! Threads over shots, so that all cores are busy to the end, with results that do not depend on who did what.

use crate::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A pool of worker threads that pull jobs off a list.
pub struct Pool {
    pool: rayon::ThreadPool,
}

/// A step of [`Pool::map_split`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    First(usize),
    Both(usize),
    Second(usize),
}

impl Pool {
    /// `threads` workers, or one per core for 0.
    pub fn new(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("fwi-{i}"));
        let pool = pool
            .build()
            .map_err(|e| Error::Usage(format!("cannot start {threads} threads: {e}; use fewer --threads")))?;
        Ok(Self { pool })
    }

    /// Number of workers.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// `f(0), f(1), ... f(jobs - 1)`, in that order.
    pub fn map<R: Send>(&self, jobs: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
        let results: Vec<Mutex<Option<R>>> = (0..jobs).map(|_| Mutex::new(None)).collect();
        self.pull(jobs, self.threads(), |job| {
            *lock(&results[job]) = Some(f(job));
        });
        unwrap_all(results)
    }

    /// `second(job, first(job))` for every job, in order, at most `in_flight` firsts waiting for their seconds or running.
    ///
    /// Jobs that do not divide evenly among the workers are split: their firsts are done first of all and their
    /// seconds last, which evens out the ends. With five shots on two threads the second halves fill the gap.
    pub fn map_split<P: Send, R: Send>(
        &self,
        jobs: usize,
        in_flight: usize,
        first: impl Fn(usize) -> P + Sync,
        second: impl Fn(usize, P) -> R + Sync,
    ) -> Vec<R> {
        let workers = self.threads().min(in_flight).max(1);
        let tasks = plan(jobs, workers, in_flight - workers.min(in_flight));
        let pending: Vec<Mutex<Option<P>>> = (0..jobs).map(|_| Mutex::new(None)).collect();
        let results: Vec<Mutex<Option<R>>> = (0..jobs).map(|_| Mutex::new(None)).collect();
        self.pull(tasks.len(), workers, |t| match tasks[t] {
            Task::First(job) => *lock(&pending[job]) = Some(first(job)),
            Task::Both(job) => *lock(&results[job]) = Some(second(job, first(job))),
            Task::Second(job) => {
                let p = loop {
                    if let Some(p) = lock(&pending[job]).take() {
                        break p;
                    }
                    std::thread::yield_now(); // its first part is running on another worker
                };
                *lock(&results[job]) = Some(second(job, p));
            }
        });
        unwrap_all(results)
    }

    fn pull(&self, tasks: usize, workers: usize, f: impl Fn(usize) + Sync) {
        let next = AtomicUsize::new(0);
        self.pool.scope(|scope| {
            for _ in 0..workers.min(tasks) {
                scope.spawn(|_| {
                    loop {
                        let t = next.fetch_add(1, Ordering::Relaxed);
                        if t >= tasks {
                            break;
                        }
                        f(t);
                    }
                });
            }
        });
    }
}

/// Up to `spare` of the jobs left over by whole rounds are split.
fn plan(jobs: usize, workers: usize, spare: usize) -> Vec<Task> {
    let split = if jobs > workers { (jobs % workers).min(spare) } else { 0 };
    let whole = jobs - split;
    let firsts = (whole..jobs).map(Task::First);
    firsts.chain((0..whole).map(Task::Both)).chain((whole..jobs).map(Task::Second)).collect()
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

fn unwrap_all<R>(results: Vec<Mutex<Option<R>>>) -> Vec<R> {
    let value = |m: Mutex<Option<R>>| m.into_inner().unwrap_or_else(|e| e.into_inner()).expect("every job was done");
    results.into_iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_shots_on_two_threads_split_one() {
        use Task::{Both, First, Second};
        assert_eq!(plan(5, 2, 1), [First(4), Both(0), Both(1), Both(2), Both(3), Second(4)]);
        assert_eq!(plan(4, 2, 1), [Both(0), Both(1), Both(2), Both(3)]);
        assert_eq!(plan(5, 2, 0), (0..5).map(Both).collect::<Vec<_>>());
    }

    #[test]
    fn results_keep_their_order() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            let squares = pool.map_split(23, threads + 2, |i| i * 10, |i, p| (i, p));
            assert!(squares.iter().enumerate().all(|(i, &(j, p))| i == j && p == 10 * i));
        }
    }
}
