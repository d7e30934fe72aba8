//! Threads over shots, so that all cores are busy to the end, with results that do not depend on who did what.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Workers that pull jobs off a list.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    threads: usize,
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
    pub fn new(threads: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { threads: if threads > 0 { threads } else { cores() } }
    }

    /// Number of workers.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How many jobs [`Pool::map_split`] would have in flight: one a worker, and those it would split.
    pub fn wanted(&self, jobs: usize) -> usize {
        let workers = self.threads.min(jobs).max(1);
        workers + if jobs > workers { jobs % workers } else { 0 }
    }

    /// `f(0), f(1), ... f(jobs - 1)`, in that order.
    pub fn map<R: Send>(&self, jobs: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
        let results: Vec<Mutex<Option<R>>> = (0..jobs).map(|_| Mutex::new(None)).collect();
        self.pull(jobs, self.threads, |job, _| {
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
        let workers = self.threads.min(in_flight).min(jobs).max(1);
        let tasks = plan(jobs, workers, in_flight - workers.min(in_flight));
        let pending: Vec<Mutex<Option<P>>> = (0..jobs).map(|_| Mutex::new(None)).collect();
        let results: Vec<Mutex<Option<R>>> = (0..jobs).map(|_| Mutex::new(None)).collect();
        self.pull(tasks.len(), workers, |t, failed| match tasks[t] {
            Task::First(job) => *lock(&pending[job]) = Some(first(job)),
            Task::Both(job) => *lock(&results[job]) = Some(second(job, first(job))),
            Task::Second(job) => {
                let p = loop {
                    if let Some(p) = lock(&pending[job]).take() {
                        break p;
                    }
                    if failed.load(Ordering::Relaxed) {
                        return; // its first part never will be done; the panic is on its way
                    }
                    std::thread::yield_now(); // its first part is running on another worker
                };
                *lock(&results[job]) = Some(second(job, p));
            }
        });
        unwrap_all(results)
    }

    /// Calls `f(task, failed)` for every task, in order of starting; `failed` is set once a call has panicked. Threads
    /// are started anew each time, which costs microseconds, so that none of them can be busy with anything else.
    fn pull(&self, tasks: usize, workers: usize, f: impl Fn(usize, &AtomicBool) + Sync) {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            let _guard = SetOnPanic(&failed);
            while !failed.load(Ordering::Relaxed) {
                let t = next.fetch_add(1, Ordering::Relaxed);
                if t >= tasks {
                    break;
                }
                f(t, &failed);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..workers.min(tasks) {
                if std::thread::Builder::new().name("fwi".into()).spawn_scoped(scope, work).is_err() {
                    break; // the system has no more threads: those there are do the work
                }
            }
            work();
        });
    }
}

/// Sets a flag when a panic unwinds through it.
struct SetOnPanic<'a>(&'a AtomicBool);

impl Drop for SetOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
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
            let pool = Pool::new(threads);
            let squares = pool.map_split(23, threads + 2, |i| i * 10, |i, p| (i, p));
            assert!(squares.iter().enumerate().all(|(i, &(j, p))| i == j && p == 10 * i));
        }
    }

    #[test]
    fn a_panic_is_passed_on_and_nobody_waits_for_ever() {
        let first = |i: usize| if i == 4 { panic!("on purpose") } else { i };
        let run = || Pool::new(2).map_split(5, 3, first, |_, p| p);
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
