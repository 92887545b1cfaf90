//! Serves small answers over HTTP.
//!
//! Whoever asks gets one answer per connection, within [`PATIENCE`], and there are [`MOST`] connections at a time. A further
//! one takes the place of the oldest, which has had the longest time: so those who say nothing, or do not read, keep
//! nobody else from being answered.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How long a client may take to say what it wants and to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most connections to a listener at once.
const MOST: usize = 256;

/// Answers every request on `listener` until the task ends, and with it all that are under way.
pub(crate) async fn serve<A>(listener: TcpListener, answer: A)
where
    A: Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Send + Sync + 'static,
{
    serve_within(PATIENCE, listener, answer).await;
}

async fn serve_within<A>(patience: Duration, listener: TcpListener, answer: A)
where
    A: Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let mut tasks = JoinSet::new();
    let mut oldest_first = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while tasks.try_join_next().is_some() {}
        oldest_first.retain(|task: &tokio::task::AbortHandle| !task.is_finished());
        if oldest_first.len() >= MOST
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        let connection = tokio::time::timeout(patience, converse(stream, Arc::clone(&answer)));
        oldest_first.push_back(tasks.spawn(async { drop(connection.await) }));
    }
}

/// One request, one answer.
async fn converse<A>(stream: TcpStream, answer: Arc<A>)
where
    A: Fn(&Request<Incoming>) -> Response<Full<Bytes>>,
{
    let answer = service_fn(|request| {
        let response = answer(&request);
        async { Ok::<_, Infallible>(response) }
    });
    // A client that goes away is no concern of ours.
    let _ = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{SocketAddr, TcpStream};

    use super::*;

    /// More than what the kernel takes of a connection whose client does not read.
    const LONG: usize = 32 << 20;

    /// A server whose answer is `length` bytes long, in the background.
    async fn server(patience: Duration, length: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = move |_: &Request<Incoming>| Response::new(Full::new(Bytes::from(vec![b'x'; length])));
        tokio::spawn(serve_within(patience, listener, answer));
        address
    }

    fn ask(stream: &mut TcpStream) -> usize {
        let mut answer = Vec::new();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        stream.read_to_end(&mut answer).unwrap();
        answer.iter().filter(|byte| **byte == b'x').count()
    }

    /// Whether the other end has closed the connection.
    fn is_closed(stream: &TcpStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        let read = (&*stream).read(&mut [0]);
        !read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn those_who_say_nothing_keep_nobody_from_an_answer_and_their_number_is_limited() {
        let address = server(Duration::from_secs(600), 3).await;
        let work = move || {
            let connect = || TcpStream::connect(address).unwrap();
            let silent: Vec<TcpStream> = (0..2 * MOST).map(|_| connect()).collect();
            assert_eq!(ask(&mut connect()), 3);
            // The last one has put the oldest of them out, who may hear of it a little later.
            while !is_closed(&silent[MOST]) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let open = silent.iter().filter(|stream| !is_closed(stream)).count();
            assert_eq!(open, MOST - 1);
            assert!(silent[..=MOST].iter().all(is_closed));
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_is_slow_to_ask_or_to_read_is_cut_off() {
        let address = server(Duration::from_millis(200), LONG).await;
        let work = move || {
            let mut slow = TcpStream::connect(address).unwrap();
            slow.write_all(b"GET / HTTP/1.1\r\nhost:").unwrap();
            assert_eq!(
                slow.read(&mut [0]).unwrap_or(0),
                0,
                "it waits for the rest no longer"
            );
            let mut lazy = TcpStream::connect(address).unwrap();
            lazy.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            std::thread::sleep(Duration::from_secs(1));
            let mut got = Vec::new();
            // What was on its way arrives; then it ends, in order or not.
            let _ = lazy.read_to_end(&mut got);
            assert!(got.len() < LONG, "{}", got.len());
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}
