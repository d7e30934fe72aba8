//! Observed gathers that stay on the device from one evaluation to the next: an inversion asks for its own again and
//! again, and at a thousand evaluations a second they would be gigabytes of copies.

use super::params::Address;
use super::runtime::Runtime;
use crate::{Gather, Result};
use std::sync::{Arc, Weak};

/// A gather on the device.
struct Kept {
    /// Tells the gather: its allocation cannot be another's, nor its contents change, as long as this exists.
    gather: Weak<Gather>,
    address: Address,
    /// The call that asked for it last.
    used: u64,
}

/// The gathers of one lane, all of one shape.
#[derive(Default)]
pub struct Gathers {
    kept: Vec<Kept>,
    calls: u64,
}

impl Gathers {
    /// Where the gathers of a launch lie, uploaded if they are not there yet. At most `most` are kept, or as many as this
    /// launch needs; the one that was asked for longest ago makes room.
    pub fn addresses(&mut self, runtime: &dyn Runtime, wanted: &[Arc<Gather>], most: usize) -> Result<Vec<Address>> {
        self.calls += 1;
        wanted.iter().map(|gather| self.address(runtime, gather, most)).collect()
    }

    fn address(&mut self, runtime: &dyn Runtime, gather: &Arc<Gather>, most: usize) -> Result<Address> {
        if let Some(kept) = self.kept.iter_mut().find(|k| std::ptr::eq(k.gather.as_ptr(), Arc::as_ptr(gather))) {
            kept.used = self.calls;
            return Ok(kept.address);
        }
        let data = gather.data.as_standard_layout();
        let bytes: &[u8] = bytemuck::cast_slice(data.as_slice().expect("in standard layout"));
        // those whose gathers are gone make room first
        let age = |k: &Kept| if k.gather.strong_count() == 0 { 0 } else { k.used };
        let oldest =
            (0..self.kept.len()).filter(|&i| self.kept[i].used < self.calls).min_by_key(|&i| age(&self.kept[i]));
        let place = oldest.filter(|&i| self.kept.len() >= most || age(&self.kept[i]) == 0);
        let address = match place {
            Some(i) => self.kept.swap_remove(i).address,
            None => runtime.alloc(bytes.len())?,
        };
        // known only once it is there
        if let Err(e) = runtime.upload(address, bytes) {
            runtime.free(address);
            return Err(e);
        }
        self.kept.push(Kept { gather: Arc::downgrade(gather), address, used: self.calls });
        Ok(address)
    }

    /// Gives all memory back.
    pub fn release(&mut self, runtime: &dyn Runtime) {
        self.kept.drain(..).for_each(|k| runtime.free(k.address));
    }
}
