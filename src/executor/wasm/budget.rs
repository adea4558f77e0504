//! The container's memory limit, shared by all memories and tables of all its instances: growth beyond it fails in
//! the guest, before the kernel kills the container. And how many instances and elements one store may have.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use wasmtime::{ResourceLimiter, Result};

use super::grants::{Grants, Limits};

/// A table's element, on 64-bit hosts.
const ELEMENT: usize = 8;

/// What the whole container may use and does use.
#[derive(Clone)]
pub struct Budget {
    limit: usize,
    used: Arc<AtomicUsize>,
    instances: usize,
    table: usize,
}

/// One store's part of it, given back with the store.
pub struct Share {
    budget: Budget,
    taken: usize,
}

impl Budget {
    pub fn new(grants: &Grants) -> Budget {
        Budget::of(grants.memory, &grants.limits)
    }

    fn of(memory: Option<u64>, limits: &Limits) -> Budget {
        let limit = memory.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX);
        Budget { limit, used: Arc::default(), instances: limits.instances, table: limits.table }
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn share(&self) -> Share {
        Share { budget: self.clone(), taken: 0 }
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|total| *total <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, more).is_ok()
    }
}

impl Share {
    fn grow(&mut self, current: usize, desired: usize, maximum: Option<usize>, unit: usize) -> bool {
        let more = desired.saturating_sub(current).saturating_mul(unit);
        // What cannot grow for another reason takes nothing.
        let possible = maximum.is_none_or(|maximum| desired <= maximum);
        let granted = possible && self.budget.take(more);
        if granted {
            self.taken += more;
        }
        granted
    }

    /// For what the host keeps for the guest: now `to` bytes where there were `from`.
    pub fn resize(&mut self, from: usize, to: usize) -> bool {
        let granted = self.budget.take(to.saturating_sub(from));
        if granted {
            let less = from.saturating_sub(to).min(self.taken);
            self.budget.used.fetch_sub(less, Relaxed);
            self.taken = self.taken - less + to.saturating_sub(from);
        }
        granted
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.taken, Relaxed);
    }
}

/// A growth that fails after we allowed it stays counted: wasmtime reports failures that it never asked about, and
/// a guest could be given back what it still has.
impl ResourceLimiter for Share {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        Ok(self.grow(current, desired, maximum, 1))
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        Ok(desired <= self.budget.table && self.grow(current, desired, maximum, ELEMENT))
    }

    fn instances(&self) -> usize {
        self.budget.instances
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(memory: Option<u64>) -> Budget {
        Budget::of(memory, &Limits::default())
    }

    #[test]
    fn a_table_has_a_limit_of_its_own() {
        let limits = Limits { table: 10, instances: 3, ..Limits::default() };
        let mut share = Budget::of(None, &limits).share();
        assert!(share.table_growing(0, 10, None).unwrap());
        assert!(!share.table_growing(10, 11, None).unwrap());
        assert_eq!(share.instances(), 3);
    }

    #[test]
    fn all_memories_share_the_limit_and_give_it_back() {
        let budget = of(Some(100));
        let (mut one, mut other) = (budget.share(), budget.share());
        assert!(one.memory_growing(0, 60, None).unwrap());
        assert!(!other.memory_growing(0, 41, None).unwrap());
        assert!(other.memory_growing(0, 40, None).unwrap());
        assert!(!one.table_growing(0, 1, None).unwrap());
        drop(other);
        assert!(one.table_growing(0, 5, None).unwrap());
        assert!(!one.table_growing(5, 6, None).unwrap());
        drop(one);
        assert_eq!(budget.used.load(Relaxed), 0);
    }

    #[test]
    fn what_cannot_grow_for_another_reason_takes_nothing() {
        let budget = of(Some(100));
        let mut share = budget.share();
        assert!(!share.memory_growing(0, 50, Some(40)).unwrap());
        assert!(share.memory_growing(0, 100, None).unwrap());
        assert!(of(None).share().memory_growing(0, usize::MAX / 2, None).unwrap());
    }
}
