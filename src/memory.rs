//! Where memory comes from, and how soon it goes back.

use libmimalloc_sys::{mi_option_set, mi_option_t};

// musl's allocator has one lock for all threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h: for how many milliseconds what is free is kept. The binding does not name it.
const PURGE_DELAY: mi_option_t = 15;

/// Takes no more of the node's memory than is in use: an agent needs more while it lists all objects, and most of what it
/// kept were pages of 2 MiB of which it used little. What it starts has none of these pages either. To be called before there
/// are threads.
pub(crate) fn keep_small() {
    // A kernel that knows no such pages refuses, and gives none.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    #[expect(unsafe_code, reason = "the allocator's options have no other interface")]
    // SAFETY: it sets a number that the allocator reads.
    unsafe {
        mi_option_set(PURGE_DELAY, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_that_of_the_delay() {
        #[expect(unsafe_code, reason = "the allocator's options have no other interface")]
        // SAFETY: it reads a number.
        let default = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(default, 1000);
    }
}
