//! The child: it limits itself, opens a network and predicts.

use super::super::network::Network;
use super::super::runtime::Runtime;
use super::messages::{Failure, Opening, Reply, flat, receive, send};
use crate::{Error, Result};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::parent_id;
use std::time::{Duration, Instant};

/// The child's side: opens the network that it is told over the socket on its standard input and predicts until the
/// parent closes it.
///
/// Errors: [`Error::Usage`] when standard input is no such socket.
pub fn serve() -> Result<()> {
    let fail = |e: io::Error| Error::Usage(format!("this command is for fwi itself: {e}"));
    watch_parent().map_err(fail)?;
    let mut stream: UnixStream = io::stdin().as_fd().try_clone_to_owned().map_err(fail)?.into();
    let Some(opening) = receive::<Opening>(&mut stream, None).map_err(fail)? else { return Ok(()) };
    let since = Instant::now();
    let network = limit(opening.memory).and_then(|()| limit_cpu(&opening, since)).and_then(|()| {
        let (runtime, trouble) = Runtime::choose(&opening.runtime)?;
        Ok((Network::open(&opening.source, &runtime, opening.threads)?, trouble))
    });
    let (network, trouble) = match network {
        Ok(opened) => opened,
        Err(e) => return send(&mut stream, &Reply::Failed(Failure::of(e))).map_err(fail),
    };
    send(&mut stream, &Reply::Ready(Box::new(network.info().clone()), trouble)).map_err(fail)?;
    while let Some(samples) = receive::<Vec<f32>>(&mut stream, None).map_err(fail)? {
        let predicted = limit_cpu(&opening, since).and_then(|()| network.predict_samples(&samples));
        let reply = match predicted {
            Ok(p) => Reply::Predicted(flat(p)),
            Err(e) => Reply::Failed(Failure::of(e)),
        };
        send(&mut stream, &reply).map_err(fail)?;
    }
    Ok(())
}

/// Ends this process when its parent has ended, also one that was killed while a network is at work here.
fn watch_parent() -> io::Result<()> {
    let parent = parent_id();
    let watch = move || {
        while parent_id() == parent {
            std::thread::sleep(Duration::from_secs(1));
        }
        // a network at work may hold any lock that an orderly exit would wait for
        std::process::abort()
    };
    std::thread::Builder::new().name("parent".into()).stack_size(1 << 17).spawn(watch).map(drop)
}

/// Limits the processor time of the next task, should everything else fail to end it: to twice what all cores could
/// give until the parent's patience is at its end.
fn limit_cpu(opening: &Opening, since: Instant) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let wall = since.elapsed().as_secs() + 2 * opening.seconds.max(1) + 1;
    set_soft(rlimit::Resource::CPU, wall.saturating_mul(cores))
        .map_err(|e| Error::Usage(format!("cannot limit the time of the prior's process: {e}")))
}

fn set_soft(resource: rlimit::Resource, value: u64) -> io::Result<()> {
    let most = resource.get_hard()?;
    resource.set(value.min(most), most)
}

/// Limits this process: data rather than address space, since threads and GPU drivers reserve far more addresses than
/// they use. A crash leaves no core file.
fn limit(memory: u64) -> Result<()> {
    let set = |resource: rlimit::Resource, bytes: u64| {
        let most = resource.get_hard().unwrap_or(u64::MAX);
        resource.set(bytes.min(most), bytes.min(most))
    };
    let memory = set(if cfg!(target_os = "linux") { rlimit::Resource::DATA } else { rlimit::Resource::AS }, memory);
    memory
        .and_then(|()| set(rlimit::Resource::CORE, 0))
        .map_err(|e| Error::Usage(format!("cannot limit the memory of the prior's process: {e}")))
}
