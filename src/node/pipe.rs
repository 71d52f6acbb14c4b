//! The connection that carries votes: one socket, calls one after the other, written and read by the task that asks.
//!
//! A client library would put a task of its own and two queues between that task and the socket, and turn every argument and
//! every entry of a reply into a value of its own: with a call for every few locks, that costs more than all decisions
//! (`bench/README.md` has the figures). Nothing here reconnects, sends again or times out: see [`super::link`].

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::future::BoxFuture;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_util::io::poll_read_buf;

use super::address::{Address, Transport};
use super::resp::{self, Answer, worded};
use super::script::{Raw, Scripts};
use super::talk::{Talk, Wire};
use super::{Connection, Course, Op, Probe, Replies, Settings, WireError};

/// Room for what one read brings.
const READ_BYTES: usize = 16 * 1024;

/// Buffers that grew beyond this for one call are not kept for the next.
const KEPT_BYTES: usize = 256 * 1024;

/// Of what nobody asked for, so much is shown.
const SHOWN_BYTES: usize = 200;

/// Settings that matter to a vote.
const SETTINGS: [&str; 4] = ["maxmemory-policy", "appendonly", "appendfsync", "no-appendfsync-on-rewrite"];

/// What bytes go through.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A connection to a server.
pub struct Pipe {
    line: Arc<Mutex<Line>>,
    /// Calls go one after the other, in the order in which they are first polled.
    turn: tokio::sync::Mutex<()>,
    talk: Talk,
}

struct Line {
    socket: Box<dyn Socket>,
    outgoing: Vec<u8>,
    sent: usize,
    incoming: BytesMut,
    /// Whether a call is under way: it reads, and finds the end if there is one.
    asking: bool,
    ended: Option<Arc<str>>,
    /// Whoever waits for the end.
    watcher: Option<Waker>,
}

impl Pipe {
    /// Connects and logs in. `patience` is how long the peer may be gone before the system ends the connection.
    pub async fn open(
        address: &Address,
        tls: Option<&ClientConfig>,
        patience: Duration,
        scripts: Arc<Scripts>,
    ) -> Result<Self, WireError> {
        let socket = dial(&address.transport, tls, patience).await.map_err(|error| closed(&error))?;
        let line = Line {
            socket,
            outgoing: Vec::new(),
            sent: 0,
            incoming: BytesMut::new(),
            asking: false,
            ended: None,
            watcher: None,
        };
        let (line, turn) = (Arc::new(Mutex::new(line)), tokio::sync::Mutex::new(()));
        let pipe = Self { line, turn, talk: Talk::new(scripts) };
        pipe.log_in(address).await?;
        Ok(pipe)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }

    /// With a password, as a user, and into a database, as far as these are named.
    async fn log_in(&self, address: &Address) -> Result<(), WireError> {
        let database = address.database.to_string();
        let mut commands: Vec<Vec<&str>> = Vec::new();
        if let Some(password) = &address.password {
            let user = address.username.iter().map(String::as_str);
            commands.push(std::iter::once("AUTH").chain(user).chain([password.reveal()]).collect());
        }
        if address.database > 0 {
            commands.push(vec!["SELECT", &database]);
        }
        let write = |out: &mut Vec<u8>| commands.iter().for_each(|words| resp::write_command(out, words));
        let answers = self.exchange(commands.len(), write).await?;
        match answers.into_iter().find_map(Result::err) {
            // Some servers repeat what they were sent.
            Some(error) => Err(WireError::Closed(worded(error.split(", with args").next().unwrap_or_default()))),
            None => Ok(()),
        }
    }

    async fn ask(&self) -> Result<Probe, WireError> {
        let _turn = self.turn.lock().await;
        let answers = self.exchange(1 + SETTINGS.len(), |out| {
            resp::write_command(out, &["INFO"]);
            SETTINGS.iter().for_each(|setting| resp::write_command(out, &["CONFIG", "GET", setting]));
        });
        let mut answers = answers.await?.into_iter();
        let info = match answers.next() {
            Some(Ok(Raw::Bytes(info))) => String::from_utf8_lossy(&info).into_owned(),
            Some(Err(error)) => return Err(WireError::Server(worded(&error))),
            _ => return Err(WireError::Closed("its INFO is no text; is it a Redis server?".into())),
        };
        let mut probe = read_info(&info, settings(answers))?;
        probe.run_id = self.talk.meet(probe.run_id);
        Ok(probe)
    }
}

impl Wire for Pipe {
    async fn exchange(&self, commands: usize, write: impl FnOnce(&mut Vec<u8>) + Send) -> Result<Vec<Answer>, WireError> {
        self.line().begin(write).map_err(WireError::Closed)?;
        let mut under_way = UnderWay { line: &self.line, finished: false };
        let mut answers = Vec::with_capacity(commands);
        let outcome = poll_fn(|context| self.line().poll_answers(context, commands, &mut answers)).await;
        under_way.finished = true;
        match outcome {
            Ok(()) => Ok(answers),
            // A server that hangs up has often said why.
            Err(why) => Err(WireError::Closed(answers.into_iter().find_map(Result::err).map_or(why, |error| worded(&error)))),
        }
    }
}

impl Connection for Pipe {
    fn probe(&self) -> BoxFuture<'_, Result<Probe, WireError>> {
        Box::pin(self.ask())
    }

    fn call<'a>(&'a self, batch: &'a [&'a Op], course: Course) -> BoxFuture<'a, Result<Replies, WireError>> {
        Box::pin(async move {
            let _turn = self.turn.lock().await;
            self.talk.call(self, batch, course).await
        })
    }

    fn closed(&self) -> BoxFuture<'static, Arc<str>> {
        let line = self.line.clone();
        Box::pin(poll_fn(move |context| lock(&line).poll_end(context)))
    }
}

fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call that nobody awaits any more leaves a reply behind that would be taken for that of the next call: so it ends the
/// connection.
struct UnderWay<'a> {
    line: &'a Mutex<Line>,
    finished: bool,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.finished {
            lock(self.line).end("a call was given up".into());
        }
    }
}

impl Line {
    fn begin(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Arc<str>> {
        if let Some(why) = &self.ended {
            return Err(why.clone());
        }
        self.asking = true;
        self.sent = 0;
        self.outgoing.clear();
        self.outgoing.shrink_to(KEPT_BYTES);
        write(&mut self.outgoing);
        Ok(())
    }

    fn poll_answers(
        &mut self,
        context: &mut Context<'_>,
        commands: usize,
        answers: &mut Vec<Answer>,
    ) -> Poll<Result<(), Arc<str>>> {
        let outcome = match ready!(self.poll_exchange(context, commands, answers)) {
            Ok(()) => {
                // It would be taken for the reply to the next call.
                if !self.incoming.is_empty() {
                    self.end(self.spoke_unasked());
                }
                Ok(())
            }
            Err(why) => {
                self.end(why.clone());
                Err(why)
            }
        };
        self.asking = false;
        // The task that asks looks for the end itself when it has its answer.
        if let Some(watcher) = self.watcher.take_if(|watcher| !watcher.will_wake(context.waker())) {
            watcher.wake();
        }
        Poll::Ready(outcome)
    }

    fn poll_exchange(
        &mut self,
        context: &mut Context<'_>,
        commands: usize,
        answers: &mut Vec<Answer>,
    ) -> Poll<Result<(), Arc<str>>> {
        if let Some(why) = &self.ended {
            return Poll::Ready(Err(why.clone()));
        }
        let sent = self.poll_send(context);
        // What has come is read whether or not all has been sent: a server that answers before may be about to hang up.
        while answers.len() < commands {
            match resp::read(&self.incoming)? {
                Some((answer, length)) => {
                    self.incoming.advance(length);
                    answers.push(answer);
                }
                None => match (self.poll_receive(context), &sent) {
                    (Poll::Ready(received), _) => received?,
                    (Poll::Pending, Poll::Ready(Err(error))) => return Poll::Ready(Err(error.to_string().into())),
                    (Poll::Pending, _) => return Poll::Pending,
                },
            }
        }
        sent.map_err(|error| error.to_string().into())
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            match ready!(Pin::new(&mut self.socket).poll_write(context, &self.outgoing[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        Pin::new(&mut self.socket).poll_flush(context)
    }

    /// At least one byte more; `Err` at the end.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Arc<str>>> {
        if self.incoming.is_empty() && self.incoming.capacity() > KEPT_BYTES {
            self.incoming = BytesMut::new();
        }
        self.incoming.reserve(READ_BYTES);
        match ready!(poll_read_buf(Pin::new(&mut self.socket), context, &mut self.incoming)) {
            Ok(0) => Poll::Ready(Err("closed by the server".into())),
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.to_string().into())),
        }
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<Arc<str>> {
        if let Some(why) = &self.ended {
            return Poll::Ready(why.clone());
        }
        if !self.watcher.as_ref().is_some_and(|watcher| watcher.will_wake(context.waker())) {
            self.watcher = Some(context.waker().clone());
        }
        if self.asking {
            return Poll::Pending;
        }
        let why = match ready!(self.poll_receive(context)) {
            Err(why) => why,
            Ok(()) => self.spoke_unasked(),
        };
        self.end(why.clone());
        Poll::Ready(why)
    }

    fn spoke_unasked(&self) -> Arc<str> {
        let said = &self.incoming[..self.incoming.len().min(SHOWN_BYTES)];
        format!("it spoke unasked: {}", String::from_utf8_lossy(said).trim_end().escape_debug()).into()
    }

    fn end(&mut self, why: Arc<str>) {
        self.ended.get_or_insert(why);
        self.watcher.take().into_iter().for_each(Waker::wake);
    }
}

async fn dial(transport: &Transport, tls: Option<&ClientConfig>, patience: Duration) -> io::Result<Box<dyn Socket>> {
    let (host, port, encrypted) = match transport {
        Transport::Unix { path } => return Ok(Box::new(UnixStream::connect(path).await?)),
        Transport::Tcp { host, port, tls } => (host, *port, *tls),
    };
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(patience))?;
    match tls.filter(|_| encrypted) {
        None if encrypted => Err(io::Error::other("TLS is not set up")),
        None => Ok(Box::new(stream)),
        Some(config) => {
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            Ok(Box::new(TlsConnector::from(Arc::new(config.clone())).connect(name, stream).await?))
        }
    }
}

fn read_info(info: &str, settings: Settings) -> Result<Probe, WireError> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let need = |name: &str| {
        field(name).ok_or_else(|| WireError::Closed(format!("its INFO has no `{name}`; is it a Redis server?").into()))
    };
    let version = match field("valkey_version") {
        Some(version) => format!("valkey {version}"),
        None => format!("redis {}", need("redis_version")?),
    };
    Ok(Probe {
        run_id: need("run_id")?.into(),
        version: version.into(),
        uptime: Duration::from_secs(need("uptime_in_seconds")?.parse().unwrap_or_default()),
        role: need("role")?.into(),
        cluster: field("cluster_enabled") == Some("1"),
        loading: field("loading") == Some("1"),
        settings,
    })
}

/// What it may not tell us is not known.
fn settings(answers: impl Iterator<Item = Answer>) -> Settings {
    let mut told = answers.map(|answer| match answer {
        Ok(Raw::List(pair)) => match pair.as_slice() {
            [_, Raw::Bytes(value)] => Some(Arc::from(String::from_utf8_lossy(value))),
            _ => None,
        },
        _ => None,
    });
    let mut next = || told.next().flatten();
    // In the order of `SETTINGS`.
    Settings { eviction: next(), append_only: next(), fsync: next(), no_fsync_on_rewrite: next() }
}

fn closed(error: &io::Error) -> WireError {
    WireError::Closed(error.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn scripts() -> Arc<Scripts> {
        Arc::new(Scripts::hashed_by(|_| "hash".to_owned()))
    }

    /// A connection, and its other end.
    async fn connected() -> (Pipe, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::parse(&format!("redis://{}", listener.local_addr().unwrap())).unwrap();
        let (pipe, accepted) = tokio::join!(Pipe::open(&address, None, Duration::from_secs(60), scripts()), listener.accept());
        (pipe.unwrap(), accepted.unwrap().0)
    }

    async fn asked(peer: &mut TcpStream) {
        let mut bytes = [0; 256];
        assert!(peer.read(&mut bytes).await.unwrap() > 0);
    }

    const EMPTY: &[u8] = b"*3\r\n$1\r\n7\r\n$1\r\n8\r\n$0\r\n\r\n";

    #[tokio::test]
    async fn a_reply_may_come_in_pieces() {
        let (pipe, mut peer) = connected().await;
        let answering = async {
            asked(&mut peer).await;
            for byte in EMPTY.chunks(1) {
                peer.write_all(byte).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (replies, ()) = tokio::join!(pipe.call(&[], Course::OneTurn), answering);
        assert_eq!(replies.unwrap().time.micros, 7_000_008);
    }

    #[tokio::test]
    async fn the_end_is_found_with_and_without_a_call() {
        let (pipe, peer) = connected().await;
        let closed = pipe.closed();
        drop(peer);
        assert!(!closed.await.is_empty());
        assert!(matches!(pipe.call(&[], Course::OneTurn).await, Err(WireError::Closed(_))));

        let (pipe, mut peer) = connected().await;
        let hanging_up = async {
            asked(&mut peer).await;
            drop(peer);
        };
        let (replies, ()) = tokio::join!(pipe.call(&[], Course::OneTurn), hanging_up);
        assert!(matches!(replies, Err(WireError::Closed(_))), "{replies:?}");
    }

    #[tokio::test]
    async fn what_nobody_asked_for_ends_the_connection_and_is_told() {
        let (pipe, mut peer) = connected().await;
        peer.write_all(b"-ERR max number of clients reached\r\n").await.unwrap();
        assert!(pipe.closed().await.contains("max number of clients reached"));
    }

    #[tokio::test]
    async fn what_comes_behind_a_reply_is_not_taken_for_the_next() {
        let (pipe, mut peer) = connected().await;
        let answering = async {
            asked(&mut peer).await;
            peer.write_all(&[EMPTY, EMPTY].concat()).await.unwrap();
        };
        let (replies, ()) = tokio::join!(pipe.call(&[], Course::OneTurn), answering);
        assert!(replies.is_ok() || matches!(replies, Err(WireError::Closed(_))));
        let mut next = pipe.call(&[], Course::OneTurn);
        tokio::select! {
            biased;
            outcome = &mut next => assert!(matches!(&outcome, Err(WireError::Closed(_))), "{outcome:?}"),
            () = tokio::time::sleep(Duration::from_secs(60)) => panic!("it waits for what has come already"),
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_has_said_why() {
        let (pipe, mut peer) = connected().await;
        let refusing = async {
            peer.write_all(b"-DENIED Redis is running in protected mode\r\n").await.unwrap();
            asked(&mut peer).await;
            drop(peer);
        };
        let (probe, ()) = tokio::join!(pipe.probe(), refusing);
        assert!(matches!(&probe, Err(WireError::Closed(why)) if why.contains("protected mode")), "{probe:?}");
    }

    #[tokio::test]
    async fn no_password_is_repeated() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::parse(&format!("redis://user:secret@{}", listener.local_addr().unwrap())).unwrap();
        let refusing = async {
            let mut peer = listener.accept().await.unwrap().0;
            asked(&mut peer).await;
            peer.write_all(b"-ERR unknown command `AUTH`, with args beginning with: `user`, `secret`, \r\n").await.unwrap();
            peer
        };
        let (opened, _peer) = tokio::join!(Pipe::open(&address, None, Duration::from_secs(60), scripts()), refusing);
        let Err(WireError::Closed(why)) = opened else { panic!("it did not let us in") };
        assert!(why.contains("unknown command") && !why.contains("secret"), "{why}");
    }

    #[tokio::test]
    async fn what_is_no_redis_server_ends_the_connection() {
        let (pipe, mut peer) = connected().await;
        let answering = async {
            asked(&mut peer).await;
            peer.write_all(b"HTTP/1.1 400 Bad Request\r\n").await.unwrap();
        };
        let (replies, ()) = tokio::join!(pipe.call(&[], Course::OneTurn), answering);
        assert!(matches!(&replies, Err(WireError::Closed(why)) if why.contains("RESP2")), "{replies:?}");
    }

    /// Or the next one would take its reply for its own.
    #[tokio::test]
    async fn a_call_that_is_given_up_ends_the_connection() {
        let (pipe, mut peer) = connected().await;
        tokio::select! {
            biased;
            _ = pipe.call(&[], Course::OneTurn) => panic!("nobody has answered"),
            () = asked(&mut peer) => {}
        }
        peer.write_all(EMPTY).await.unwrap();
        let next = pipe.call(&[], Course::OneTurn).await;
        assert!(matches!(&next, Err(WireError::Closed(why)) if why.contains("given up")), "{next:?}");
        assert!(pipe.closed().await.contains("given up"));
    }
}
