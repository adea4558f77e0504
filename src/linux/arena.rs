//! The allocator. A verb lives for milliseconds, with one thread: malloc(3) and free(3) were a third of the instructions of its
//! start. What the first thread asks for is cut off one piece of static memory, and what it gives back is kept, to be given out
//! again: a page that is touched for the first time costs as much as several system calls. Other threads, a guest's and the
//! compiler's, get malloc's blocks, and so does the first when the piece is used up.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::mem::offset_of;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes: several times what `run` needs. Pages that nobody asks for are not there.
const SIZE: usize = 512 << 10;

/// Sizes and addresses are multiples of it.
const STEP: usize = 16;

/// A block up to this is kept by its size, a larger one as a rest, off which any size is cut.
const KEPT: usize = 1 << 10;

/// A larger block is malloc's: it would leave nothing to the many small ones.
const LARGE: usize = SIZE / 8;

pub struct Arena {
    /// The first thread to ask, to whom alone `piece` belongs.
    owner: AtomicUsize,
    piece: UnsafeCell<Piece>,
}

/// In this order, so that the first blocks are in the page of what tells of them.
#[repr(C, align(4096))]
struct Piece {
    used: usize,
    /// By size in steps: the block that was given back last, in which is the address of the one before.
    kept: [*mut u8; KEPT / STEP + 1],
    /// The one that was given back last.
    rests: *mut Rest,
    memory: Memory,
}

/// What is left of a large block that was given back: written at its start.
struct Rest {
    before: *mut Rest,
    size: usize,
}

#[repr(align(16))]
struct Memory([u8; SIZE]);

// SAFETY: `piece` is one thread's, as `mine` says.
unsafe impl Sync for Arena {}

thread_local! {
    /// Its address is the thread's name, which no other thread has while the owner, the process's first, lives.
    static HERE: u8 = const { 0 };
}

impl Arena {
    pub const fn new() -> Arena {
        let (kept, memory) = ([null_mut(); KEPT / STEP + 1], Memory([0; SIZE]));
        let piece = Piece { used: 0, kept, rests: null_mut(), memory };
        Arena { owner: AtomicUsize::new(0), piece: UnsafeCell::new(piece) }
    }

    /// The piece, to its owner.
    fn mine(&self) -> Option<*mut Piece> {
        let me = HERE.with(|here| std::ptr::from_ref(here) as usize);
        let owner = self.owner.load(Relaxed);
        let mine = owner == me || owner == 0 && self.owner.compare_exchange(0, me, Relaxed, Relaxed).is_ok();
        mine.then(|| self.piece.get())
    }

    /// Where in the piece's memory a block is.
    fn offset(&self, block: *mut u8) -> Option<usize> {
        let offset = (block as usize).wrapping_sub(self.piece.get() as usize + offset_of!(Piece, memory));
        (offset < SIZE).then_some(offset)
    }

    fn cut(&self, layout: Layout) -> Option<*mut u8> {
        if layout.size() > LARGE || layout.align() > STEP {
            return None;
        }
        // SAFETY: it is this thread's, and nothing here allocates, so this is the one reference to it. A block that is
        // kept is nobody's, and in it is what `give_back` has written.
        unsafe {
            let piece = &mut *self.mine()?;
            let size = layout.size().next_multiple_of(STEP);
            if let Some(kept) = piece.kept.get_mut(size / STEP).filter(|kept| !kept.is_null()) {
                let block = *kept;
                *kept = block.cast::<*mut u8>().read();
                return Some(block);
            }
            if let Some(block) = piece.cut_off_rest(size) {
                return Some(block);
            }
            let end = Some(piece.used + size).filter(|end| *end <= SIZE)?;
            let block = piece.memory.0.as_mut_ptr().add(piece.used);
            piece.used = end;
            Some(block)
        }
    }

    /// Another thread's to give back is lost.
    ///
    /// # Safety
    /// The block at `offset` is one of `cut`'s, of this size, and nobody has it any more.
    unsafe fn give_back(&self, offset: usize, size: usize) {
        let Some(piece) = self.mine() else { return };
        let size = size.next_multiple_of(STEP);
        // SAFETY: as in `cut`; the block is large enough for an address, and aligned for one.
        unsafe {
            let piece = &mut *piece;
            if offset + size == piece.used {
                piece.used = offset;
            } else {
                let block = piece.memory.0.as_mut_ptr().add(offset);
                piece.keep(block, size);
            }
        }
    }

    /// Moves the end of the block that was cut last. False for any other block, and where there is no room.
    fn resize(&self, offset: usize, size: usize, wanted: usize) -> bool {
        let Some(piece) = self.mine() else { return false };
        let (end, wanted) = (offset + size.next_multiple_of(STEP), offset + wanted.next_multiple_of(STEP));
        // SAFETY: as in `cut`.
        let used = unsafe { &mut (*piece).used };
        let last = *used == end && wanted <= SIZE;
        if last {
            *used = wanted;
        }
        last
    }
}

impl Piece {
    /// # Safety
    /// The block is of the piece's memory and nobody's, and its size a multiple of `STEP`.
    unsafe fn keep(&mut self, block: *mut u8, size: usize) {
        // SAFETY: it is large enough for what is written into it, and aligned for it.
        unsafe {
            match self.kept.get_mut(size / STEP) {
                Some(kept) => {
                    block.cast::<*mut u8>().write(*kept);
                    *kept = block;
                }
                None => {
                    let rest = block.cast::<Rest>();
                    rest.write(Rest { before: self.rests, size });
                    self.rests = rest;
                }
            }
        }
    }

    /// Off its end: its start says what is left.
    fn cut_off_rest(&mut self, size: usize) -> Option<*mut u8> {
        let mut link = &raw mut self.rests;
        // SAFETY: `keep` has written what the links lead to, and nobody else has had it since.
        unsafe {
            while !(*link).is_null() {
                let rest = *link;
                if let Some(left) = (*rest).size.checked_sub(size) {
                    // No longer a rest, so that there are but a few to look at.
                    if left <= KEPT {
                        *link = (*rest).before;
                        if left > 0 {
                            self.keep(rest.cast(), left);
                        }
                    } else {
                        (*rest).size = left;
                    }
                    return Some(rest.cast::<u8>().add(left));
                }
                link = &raw mut (*rest).before;
            }
        }
        None
    }
}

// SAFETY: a byte is of one block until that is given back, and a block grows only into bytes that are nobody's. What is
// not of the piece is `System`'s.
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
        // SAFETY: the caller's.
        unsafe {
            match self.offset(block) {
                Some(offset) => self.give_back(offset, layout.size()),
                None => System.dealloc(block, layout),
            }
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
                self.give_back(offset, layout.size());
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

    /// A block of `size` bytes, all of them `mark`.
    fn block(arena: &Arena, size: usize, align: usize, mark: u8) -> *mut u8 {
        // SAFETY: no size here is 0, and the block has it.
        unsafe {
            let block = arena.alloc(layout(size, align));
            assert_eq!(block as usize % align, 0);
            block.write_bytes(mark, size);
            block
        }
    }

    fn is_all(block: *mut u8, size: usize, mark: u8) -> bool {
        // SAFETY: as it was made.
        unsafe { std::slice::from_raw_parts(block, size) }.iter().all(|byte| *byte == mark)
    }

    #[test]
    fn no_block_has_a_byte_of_another() {
        let arena = Box::new(Arena::new());
        let mut live: Vec<(*mut u8, usize, usize, u8)> = Vec::new();
        let (mut inside, mut beyond, mut random) = (0, 0, 1u32);
        for round in 0..20_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (size, align) = (1 + (random >> 8) as usize % 3000, 1 << ((random >> 24) % 6));
            let mark = round as u8;
            if random % 3 > 0 || live.is_empty() {
                let block = block(&arena, size, align, mark);
                *if arena.offset(block).is_some() { &mut inside } else { &mut beyond } += 1;
                live.push((block, size, align, mark));
                continue;
            }
            let at = (random >> 4) as usize % live.len();
            let (block, old, align, mark) = live[at];
            assert!(is_all(block, old, mark), "round {round}");
            // SAFETY: sizes and alignments are those of the blocks.
            unsafe {
                if random & 0x8000 == 0 {
                    arena.dealloc(block, layout(old, align));
                    live.swap_remove(at);
                } else {
                    let moved = arena.realloc(block, layout(old, align), size);
                    assert!(is_all(moved, old.min(size), mark), "round {round}");
                    moved.write_bytes(mark, size);
                    live[at] = (moved, size, align, mark);
                }
            }
        }
        assert!(inside > 500 && beyond > 500, "{inside} inside, {beyond} beyond");
        assert!(live.iter().all(|(block, size, _, mark)| is_all(*block, *size, *mark)));
    }

    #[test]
    fn what_is_given_back_is_given_out_again() {
        let arena = Box::new(Arena::new());
        // SAFETY: layouts are those of the blocks.
        unsafe {
            let first = block(&arena, 100, 8, 1);
            assert_eq!(arena.realloc(first, layout(100, 8), 200), first);
            let second = block(&arena, 40, 8, 2);
            let moved = arena.realloc(first, layout(200, 8), 300);
            assert!(moved != first && is_all(moved, 100, 1) && is_all(second, 40, 2));
            assert_eq!(block(&arena, 201, 8, 3), first);
            arena.dealloc(moved, layout(300, 8));
            assert_eq!(block(&arena, 16, 8, 4), moved);
            let large = block(&arena, 2048, 8, 5);
            let last = block(&arena, 16, 8, 6);
            arena.dealloc(large, layout(2048, 8));
            assert_eq!(block(&arena, 1009, 8, 7), large.add(1024));
            assert_eq!(block(&arena, 1024, 8, 8), large);
            assert_eq!(block(&arena, 2048, 8, 9), last.add(16));
            assert!(arena.offset(block(&arena, LARGE + 1, 8, 5)).is_none());
            assert!(arena.offset(block(&arena, 64, 64, 6)).is_none());
        }
    }

    #[test]
    fn it_belongs_to_the_first_thread() {
        static ARENA: Arena = Arena::new();
        let first = block(&ARENA, 32, 8, 1) as usize;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(ARENA.offset(block(&ARENA, 32, 8, 2)).is_none());
                // SAFETY: as it was made; it is lost, not given out here.
                unsafe { ARENA.dealloc(first as *mut u8, layout(32, 8)) };
                assert!(ARENA.offset(block(&ARENA, 32, 8, 2)).is_none());
            });
        });
        assert!(block(&ARENA, 32, 8, 1) as usize > first);
    }
}
