//! The allocator. A verb lives for milliseconds and needs little of what it gives back, so what it asks for first is cut
//! off one piece of static memory: malloc(3) and free(3) were a third of the instructions of a start. When the piece is
//! used up, as by a guest or a large document, malloc goes on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Bytes: several times what `run` needs. Pages that nobody asks for are not there.
const SIZE: usize = 512 << 10;

/// malloc's: a large block would leave nothing to the many small ones.
const LARGE: usize = SIZE / 8;

const ALIGNMENT: usize = 16;

pub struct Arena {
    /// Bytes of `memory`. Beside its start, to be in the page of the first blocks.
    used: AtomicUsize,
    memory: Memory,
}

#[repr(align(16))]
struct Memory(UnsafeCell<[u8; SIZE]>);

// SAFETY: whose a byte of `memory` is says `used` alone, which is atomic.
unsafe impl Sync for Arena {}

impl Arena {
    pub const fn new() -> Arena {
        Arena { used: AtomicUsize::new(0), memory: Memory(UnsafeCell::new([0; SIZE])) }
    }

    /// Where in `memory` a block is.
    fn offset(&self, block: *mut u8) -> Option<usize> {
        let offset = (block as usize).wrapping_sub(self.memory.0.get() as usize);
        (offset < SIZE).then_some(offset)
    }

    fn cut(&self, layout: Layout) -> Option<*mut u8> {
        if layout.size() > LARGE || layout.align() > ALIGNMENT {
            return None;
        }
        let mut used = self.used.load(Relaxed);
        loop {
            let offset = used.next_multiple_of(layout.align());
            let end = Some(offset + layout.size()).filter(|end| *end <= SIZE)?;
            match self.used.compare_exchange_weak(used, end, Acquire, Relaxed) {
                // SAFETY: it is within the memory.
                Ok(_) => return Some(unsafe { self.memory.0.get().cast::<u8>().add(offset) }),
                Err(now) => used = now,
            }
        }
    }

    /// Moves the end of the block that was cut last. False for any other block, and where there is no room.
    fn resize(&self, offset: usize, size: usize, wanted: usize) -> bool {
        let (end, wanted) = (offset + size, offset + wanted);
        wanted <= SIZE
            && self.used.load(Relaxed) == end
            && self.used.compare_exchange(end, wanted, Release, Relaxed).is_ok()
    }
}

// SAFETY: `cut` gives out a byte, aligned as is asked for, to one block until that is given back, and a block grows only
// into bytes that are nobody's. What is not the arena's is `System`'s.
//
// Not inlined: all of a program's allocations are a megabyte of it then.
unsafe impl GlobalAlloc for Arena {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        self.cut(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match self.offset(block) {
            Some(offset) => _ = self.resize(offset, layout.size(), 0),
            // SAFETY: the caller's.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(block) else {
            // SAFETY: the caller's.
            return unsafe { System.realloc(block, layout, size) };
        };
        if self.resize(offset, layout.size(), size) || size <= layout.size() {
            return block;
        }
        // SAFETY: the caller's size is one for this alignment; the new block is another than the old one, and larger.
        unsafe {
            let larger = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !larger.is_null() {
                larger.copy_from_nonoverlapping(block, layout.size());
            }
            larger
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// Blocks of an arena of its own: (address, size).
    fn is_apart(blocks: &[(*mut u8, usize)]) -> bool {
        let mut ends: Vec<_> =
            blocks.iter().map(|(block, size)| (*block as usize, *block as usize + size)).collect();
        ends.sort_unstable();
        ends.windows(2).all(|pair| pair[0].1 <= pair[1].0)
    }

    #[test]
    fn blocks_are_aligned_and_apart_in_it_and_beyond() {
        let arena = Box::new(Arena::new());
        let mut blocks = Vec::new();
        for round in 0..3 * SIZE / 1024 {
            let (size, align) = (1 + round * 37 % 2000, 1 << (round % 5));
            // SAFETY: the size is not 0.
            let block = unsafe { arena.alloc(layout(size, align)) };
            assert_eq!(block as usize % align, 0);
            // SAFETY: a block of this size.
            unsafe { block.write_bytes(round as u8, size) };
            blocks.push((block, size, align));
        }
        let inside = blocks.iter().filter(|(block, ..)| arena.offset(*block).is_some()).count();
        assert!(inside > 400 && inside < blocks.len(), "{inside} of {}", blocks.len());
        assert!(is_apart(&blocks.iter().map(|(block, size, _)| (*block, *size)).collect::<Vec<_>>()));
        for (round, (block, size, align)) in blocks.into_iter().enumerate() {
            // SAFETY: as it was cut.
            unsafe {
                assert!(std::slice::from_raw_parts(block, size).iter().all(|byte| *byte == round as u8));
                arena.dealloc(block, layout(size, align));
            }
        }
    }

    #[test]
    fn the_last_block_grows_and_goes_where_it_is() {
        let arena = Box::new(Arena::new());
        // SAFETY: sizes and layouts are those of the blocks.
        unsafe {
            let first = arena.alloc(layout(100, 8));
            assert_eq!(arena.realloc(first, layout(100, 8), 200), first);
            let second = arena.alloc(layout(8, 8));
            second.cast::<u64>().write(7);
            first.write_bytes(3, 200);
            let moved = arena.realloc(first, layout(200, 8), 300);
            assert_ne!(moved, first);
            assert_eq!(std::slice::from_raw_parts(moved, 200), [3; 200]);
            assert_eq!(second.cast::<u64>().read(), 7);
            arena.dealloc(moved, layout(300, 8));
            assert_eq!(arena.alloc(layout(300, 8)), moved);
            assert!(arena.offset(arena.alloc(layout(LARGE + 1, 8))).is_none());
            assert!(arena.offset(arena.alloc(layout(64, 64))).is_none());
        }
    }

    #[test]
    fn threads_have_blocks_of_their_own() {
        static ARENA: Arena = Arena::new();
        let cut = |mark: u8| {
            let mut blocks = Vec::new();
            for round in 0..2000 {
                let size = 8 + round % 64;
                // SAFETY: the layouts are those of the blocks.
                unsafe {
                    let block = ARENA.alloc(layout(size, 8));
                    block.write_bytes(mark, size);
                    if round % 3 == 0 {
                        ARENA.dealloc(block, layout(size, 8));
                    } else {
                        blocks.push((block as usize, size));
                    }
                }
            }
            blocks
        };
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..5).map(|mark| scope.spawn(move || (mark, cut(mark)))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        for (mark, blocks) in &all {
            for (block, size) in blocks {
                // SAFETY: it was written above, and not given back.
                let bytes = unsafe { std::slice::from_raw_parts(*block as *const u8, *size) };
                assert!(bytes.iter().all(|byte| byte == mark));
            }
        }
    }
}
