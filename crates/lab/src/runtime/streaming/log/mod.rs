//! Container logs: from the file in the CRI format to the bytes a client reads.

mod follow;
mod record;

use bytes::Bytes;
use tokio::sync::mpsc;

use follow::Reader;
use record::Record;

use super::LogSource;
use super::request::LogOptions;

/// Bytes collected before they are sent while the log is read at full speed.
const CHUNK: usize = 32 * 1024;

/// Sends what `options` ask for into `sink`; returns when all is sent or nobody listens.
pub(super) async fn send(
    source: LogSource,
    options: LogOptions,
    sink: mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let mut reader = Reader::open(source, options.tail_lines, options.follow)?;
    let mut format = Format::new(&options);
    loop {
        let mut chunk = Vec::new();
        let mut at_end = false;
        while chunk.len() < CHUNK && !format.is_full() && !at_end {
            match reader.next_ready()? {
                Some(record) => format.write(&record, &mut chunk),
                None => at_end = true,
            }
        }
        let nobody_listens = !chunk.is_empty() && sink.send(chunk.into()).await.is_err();
        if nobody_listens || format.is_full() {
            return Ok(());
        }
        if !at_end {
            continue;
        }
        tokio::select! {
            more = reader.more() => if !more? { return Ok(()) },
            () = sink.closed() => return Ok(()),
        }
    }
}

/// How records become text.
struct Format {
    since: Option<jiff::Timestamp>,
    timestamps: bool,
    left: u64,
    within_line: bool,
}

impl Format {
    fn new(options: &LogOptions) -> Self {
        Format {
            since: options.since,
            timestamps: options.timestamps,
            left: options.limit_bytes.unwrap_or(u64::MAX),
            within_line: false,
        }
    }

    fn write(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        if self.since.is_some_and(|since| record.time < since) {
            return;
        }
        let start = out.len();
        if self.timestamps && !self.within_line {
            out.extend_from_slice(format!("{:.9} ", record.time).as_bytes());
        }
        out.extend_from_slice(record.text);
        if !record.partial {
            out.push(b'\n');
        }
        self.within_line = record.partial;
        let written = (out.len() - start) as u64;
        if written > self.left {
            out.truncate(start + usize::try_from(self.left).unwrap_or(usize::MAX));
        }
        self.left = self.left.saturating_sub(written);
    }

    fn is_full(&self) -> bool {
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;

    struct Log {
        dir: tempfile::TempDir,
        finished: watch::Sender<bool>,
    }

    impl Log {
        fn new(text: &str) -> Self {
            let log = Log {
                dir: tempfile::tempdir().unwrap(),
                finished: watch::Sender::new(false),
            };
            std::fs::write(log.path(), text).unwrap();
            log
        }

        fn path(&self) -> std::path::PathBuf {
            self.dir.path().join("0.log")
        }

        fn append(&self, text: &str) {
            let mut file = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(self.path())
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn start(&self, options: LogOptions) -> mpsc::Receiver<Bytes> {
            let source = LogSource {
                path: self.path(),
                finished: self.finished.subscribe(),
            };
            let (sink, received) = mpsc::channel(4);
            tokio::spawn(async move { send(source, options, sink).await.unwrap() });
            received
        }

        async fn all(&self, options: LogOptions) -> String {
            collect(&mut self.start(options)).await
        }
    }

    async fn next(received: &mut mpsc::Receiver<Bytes>) -> Option<String> {
        let chunk = tokio::time::timeout(Duration::from_secs(5), received.recv())
            .await
            .expect("in time");
        chunk.map(|chunk| String::from_utf8(chunk.to_vec()).unwrap())
    }

    async fn collect(received: &mut mpsc::Receiver<Bytes>) -> String {
        let mut text = String::new();
        while let Some(chunk) = next(received).await {
            text.push_str(&chunk);
        }
        text
    }

    fn line(second: u32, tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.5Z stdout {tag} {text}\n")
    }

    fn sample() -> Log {
        Log::new(&(line(1, "F", "one") + &line(2, "P", "tw") + &line(2, "F", "o") + &line(3, "F", "three")))
    }

    #[tokio::test]
    async fn parts_of_a_line_are_joined_and_times_are_added_once() {
        assert_eq!(sample().all(LogOptions::default()).await, "one\ntwo\nthree\n");
        let with_times = sample()
            .all(LogOptions {
                timestamps: true,
                ..Default::default()
            })
            .await;
        let expected = "2026-01-01T00:00:01.500000000Z one\n2026-01-01T00:00:02.500000000Z two\n\
            2026-01-01T00:00:03.500000000Z three\n";
        assert_eq!(with_times, expected);
    }

    #[tokio::test]
    async fn the_last_lines_the_latest_and_so_many_bytes() {
        let log = sample();
        let tail = |lines| LogOptions {
            tail_lines: Some(lines),
            ..Default::default()
        };
        assert_eq!(log.all(tail(0)).await, "");
        assert_eq!(log.all(tail(1)).await, "three\n");
        assert_eq!(log.all(tail(2)).await, "two\nthree\n");
        assert_eq!(log.all(tail(99)).await, "one\ntwo\nthree\n");
        let since = LogOptions {
            since: Some("2026-01-01T00:00:03Z".parse().unwrap()),
            ..Default::default()
        };
        assert_eq!(log.all(since).await, "three\n");
        assert_eq!(
            log.all(LogOptions {
                limit_bytes: Some(6),
                ..Default::default()
            })
            .await,
            "one\ntw"
        );
        let both = LogOptions {
            tail_lines: Some(1),
            limit_bytes: Some(2),
            ..Default::default()
        };
        assert_eq!(log.all(both).await, "th");
    }

    #[tokio::test]
    async fn following_goes_on_until_the_container_has_ended() {
        let log = sample();
        let mut received = log.start(LogOptions {
            follow: true,
            tail_lines: Some(1),
            ..Default::default()
        });
        assert_eq!(next(&mut received).await.unwrap(), "three\n");
        let whole = line(4, "F", "four");
        let (first, second) = whole.split_at(20);
        log.append(first);
        log.append(second);
        assert_eq!(next(&mut received).await.unwrap(), "four\n");
        log.append(&line(5, "F", "five"));
        log.finished.send_replace(true);
        assert_eq!(collect(&mut received).await, "five\n");
    }

    #[tokio::test]
    async fn following_goes_over_to_the_new_file_when_the_log_is_rotated() {
        let log = sample();
        let mut received = log.start(LogOptions {
            follow: true,
            tail_lines: Some(0),
            ..Default::default()
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        log.append(&line(4, "F", "last of the old"));
        std::fs::rename(log.path(), log.dir.path().join("0.log.1")).unwrap();
        log.append(&line(5, "F", "first of the new"));
        let mut text = next(&mut received).await.unwrap();
        if !text.contains("new") {
            text += &next(&mut received).await.unwrap();
        }
        assert_eq!(text, "last of the old\nfirst of the new\n");
        drop(log.finished);
        assert_eq!(next(&mut received).await, None);
    }

    #[tokio::test]
    async fn a_line_that_is_no_record_is_left_out() {
        let log = Log::new(&format!("nonsense\n{}\n\n", line(1, "F", "good").trim_end()));
        assert_eq!(log.all(LogOptions::default()).await, "good\n");
    }

    #[tokio::test]
    async fn a_long_log_comes_whole() {
        let text: String = (0..20_000).map(|n| line(n % 60, "F", &n.to_string())).collect();
        let log = Log::new(&text);
        let expected: String = (0..20_000).map(|n| format!("{n}\n")).collect();
        assert!(log.all(LogOptions::default()).await == expected);
        let tail = log
            .all(LogOptions {
                tail_lines: Some(15_000),
                ..Default::default()
            })
            .await;
        assert!(tail == expected[expected.find("\n5000\n").unwrap() + 1..]);
    }
}
