//! Which boot of the machine this is.

use std::io;

/// The kernel's identifier of this boot: another after every reboot, the same in all containers.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim_end()
        .to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_stays_the_same() {
        let first = super::boot_id().unwrap();
        assert_eq!(first.len(), 36);
        assert_eq!(super::boot_id().unwrap(), first);
    }
}
