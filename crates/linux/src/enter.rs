//! Starting a process inside namespaces that the caller is not in.

use std::io;
use std::process::{Child, Command};

use crate::ns::{Namespace, unshare};

/// Spawns `command` with the namespaces given, in their order; the caller stays where it is.
///
/// The spawn happens on a thread of its own. A mount namespace can be entered only by a thread that shares its
/// root and working directory with no other one, so the thread unshares these first; entering moves both to
/// the root of that namespace, and paths in `command` are looked up there.
pub fn spawn(namespaces: &[&Namespace], command: &mut Command) -> io::Result<Child> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("enter".into())
            .spawn_scoped(scope, || {
                unshare(libc::CLONE_FS)?;
                for namespace in namespaces {
                    namespace.enter()?;
                }
                command.spawn()
            })?
            .join()
            .map_err(|_| io::Error::other("the thread that starts the process panicked"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ns::Kind;

    #[test]
    fn the_child_is_inside_and_the_caller_is_not() {
        let before = Namespace::current(Kind::Mount).unwrap().inode().unwrap();
        let mount = Namespace::create(Kind::Mount).unwrap();
        let net = Namespace::create(Kind::Net).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "stat -Lc %i /proc/self/ns/mnt /proc/self/ns/net; pwd"]);
        command.stdout(std::process::Stdio::piped());
        let output = spawn(&[&mount, &net], &mut command)
            .unwrap()
            .wait_with_output()
            .unwrap();
        let expected = format!("{}\n{}\n/\n", mount.inode().unwrap(), net.inode().unwrap());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
        assert_eq!(Namespace::current(Kind::Mount).unwrap().inode().unwrap(), before);
    }
}
