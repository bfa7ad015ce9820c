//! Buffers of the thread, lent to a connection while it has bytes in them.

use std::cell::RefCell;

/// What one system call moves: eight records, all but one of them whole. It fills two of the largest segments
/// that the kernel makes (64 KiB, whole frames of any usual size) and leaves no small third one, which would
/// cost as much as either. Larger no longer fits into the second-level cache together with what the bytes
/// are copied to.
pub(super) const SIZE: usize = 122 * 1024;

/// Kept by a thread: one or two are in use at any moment, the rest waits for a socket.
const KEPT: usize = 4;

thread_local! {
    // State of a thread, not of a decision: nobody sees what was in them.
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of length [`SIZE`]; what is in it is old.
pub(super) fn take() -> Vec<u8> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE])
}

/// Gives a buffer back.
pub(super) fn give_back(buffer: Vec<u8>) {
    if buffer.len() == SIZE {
        BUFFERS.with_borrow_mut(|buffers| {
            if buffers.len() < KEPT {
                buffers.push(buffer);
            }
        });
    }
}
