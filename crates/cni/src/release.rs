//! How an address is given back when no agent is there to take it: by moving the lease's file.

use std::io;
use std::path::Path;

use crate::attachment::Attachment;

/// Directory of the leases, below the state directory: a file for each attachment that has addresses.
pub const LEASES: &str = "leases";
/// Directory of the leases that are over, below the state directory, until the agent has taken note.
pub const RELEASED: &str = "released";

/// Ends the lease of an attachment. False if it has none.
///
/// The file moves in one step, so that it is in one of the two directories at every moment; the agent, running
/// or not, finds it there.
pub fn note_release(state_dir: &Path, attachment: &Attachment) -> io::Result<bool> {
    let name = attachment.file_name();
    let (lease, released) = (
        state_dir.join(LEASES).join(&name),
        state_dir.join(RELEASED).join(&name),
    );
    match std::fs::rename(&lease, &released) {
        Ok(()) => Ok(true),
        // Either there is no lease, or nobody has made the directory yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !lease.exists() {
                return Ok(false);
            }
            std::fs::create_dir_all(state_dir.join(RELEASED))?;
            std::fs::rename(&lease, &released)?;
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_moves_once() {
        let dir = tempfile::tempdir().unwrap();
        let attachment = Attachment::new("c1", "eth0").unwrap();
        assert!(!note_release(dir.path(), &attachment).unwrap());
        std::fs::create_dir(dir.path().join(LEASES)).unwrap();
        std::fs::write(dir.path().join(LEASES).join("c1:eth0"), "x").unwrap();
        assert!(note_release(dir.path(), &attachment).unwrap());
        assert_eq!(
            std::fs::read_to_string(dir.path().join(RELEASED).join("c1:eth0")).unwrap(),
            "x"
        );
        assert!(!note_release(dir.path(), &attachment).unwrap());
    }
}
