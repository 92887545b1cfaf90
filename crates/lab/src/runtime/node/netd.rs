//! Watching a directory for files that come and go.

use std::io;
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Runs `look` on the directory now and after each change in it, and sends what it finds when that is new.
/// Returns only with an error, or when nobody listens any more.
pub async fn watch_directory<T: PartialEq>(
    dir: &Path,
    found: watch::Sender<T>,
    look: impl Fn(&Path) -> T,
) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::CREATE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE;
    inotify::add_watch(&fd, dir, flags)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for owners that hand out foreign descriptors; OwnedFd does not"
    )]
    let fd = AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)?;
    // The watch is there before the first look, so nothing is missed in between.
    while !found.is_closed() {
        let now = look(dir);
        found.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
        let mut ready = fd.readable().await?;
        drain(&fd)?;
        ready.clear_ready();
    }
    Ok(())
}

fn drain(fd: &AsyncFd<rustix::fd::OwnedFd>) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(fd.get_ref(), &mut buffer);
    loop {
        match reader.next() {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_file_that_comes_is_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, mut receiver) = watch::channel(usize::MAX);
        let path = dir.path().join("net.d");
        let watched = path.clone();
        let task = tokio::spawn(async move {
            watch_directory(&watched, sender, |dir| std::fs::read_dir(dir).unwrap().count()).await
        });
        let mut next = async || {
            tokio::time::timeout(Duration::from_secs(5), receiver.changed())
                .await
                .unwrap()
                .unwrap();
            *receiver.borrow_and_update()
        };
        assert_eq!(next().await, 0);
        std::fs::write(path.join(".tmp"), "x").unwrap();
        assert_eq!(next().await, 1);
        std::fs::rename(path.join(".tmp"), path.join("10.conflist")).unwrap();
        std::fs::write(path.join("20.conflist"), "x").unwrap();
        assert_eq!(next().await, 2);
        task.abort();
    }
}
