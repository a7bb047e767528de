//! Stands between a client and a server on the network, counts what passes, and gets in the way.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Methods of HTTP and WebDAV: what begins a request.
const METHODS: [&str; 11] = [
    "GET ",
    "PUT ",
    "HEAD ",
    "POST ",
    "DELETE ",
    "OPTIONS ",
    "PROPFIND ",
    "MKCOL ",
    "MOVE ",
    "COPY ",
    "PROPPATCH ",
];

/// A TCP port of this machine that leads to another one, as long as it is told to.
///
/// It counts from its beginning; [`Traffic::since`] gives what passed between two looks.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    acceptor: Option<JoinHandle<()>>,
}

/// What passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Connections that a client made.
    pub connections: u64,
    /// Requests of HTTP in them.
    pub requests: u64,
    /// Bytes from the client to the server.
    pub sent: u64,
    /// Bytes from the server to the client.
    pub received: u64,
}

impl Traffic {
    /// What passed after an earlier look.
    #[must_use]
    pub fn since(self, earlier: Traffic) -> Traffic {
        Traffic {
            connections: self.connections - earlier.connections,
            requests: self.requests - earlier.requests,
            sent: self.sent - earlier.sent,
            received: self.received - earlier.received,
        }
    }
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    mode: Mutex<Mode>,
    changed: Condvar,
    /// When the line is free again, where its rate is limited.
    free_at: Mutex<Instant>,
    open: Mutex<Vec<TcpStream>>,
    connections: AtomicU64,
    requests: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Mode {
    frozen: bool,
    refusing: bool,
    keeping: bool,
    closing: bool,
    delay: Duration,
    bytes_per_second: Option<u64>,
}

impl Proxy {
    /// Leads to a port of this machine.
    pub fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let own = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            upstream: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            mode: Mutex::default(),
            changed: Condvar::new(),
            free_at: Mutex::new(Instant::now()),
            open: Mutex::default(),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Proxy { shared, port: own, acceptor: Some(acceptor) }
    }

    /// The port that a client connects to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What has passed so far.
    pub fn traffic(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            connections: read(&self.shared.connections),
            requests: read(&self.shared.requests),
            sent: read(&self.shared.sent),
            received: read(&self.shared.received),
        }
    }

    /// Lets nothing through any more, as a pulled cable does: nobody is told.
    pub fn freeze(&self) {
        self.change(|mode| mode.frozen = true);
    }

    /// Ends connections, and each new one at once.
    pub fn refuse(&self) {
        self.change(|mode| mode.refusing = true);
        self.cut();
    }

    /// Refuses every request to delete something, as a server does that was told to keep all.
    pub fn keep_all(&self) {
        self.change(|mode| mode.keeping = true);
    }

    /// Lets everything through again.
    pub fn mend(&self) {
        self.change(|mode| *mode = Mode { closing: mode.closing, ..Mode::default() });
    }

    /// Ends every connection that there is; new ones are welcome.
    pub fn cut(&self) {
        for socket in lock(&self.shared.open).drain(..) {
            // The other side may have ended it already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Keeps every request for so long.
    pub fn delay(&self, delay: Duration) {
        self.change(|mode| mode.delay = delay);
    }

    /// Lets so many bytes through in a second, over all connections.
    pub fn limit(&self, bytes_per_second: u64) {
        self.change(|mode| mode.bytes_per_second = Some(bytes_per_second.max(1)));
    }

    fn change(&self, change: impl FnOnce(&mut Mode)) {
        change(&mut lock(&self.shared.mode));
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|mode| *mode = Mode { closing: true, ..Mode::default() });
        self.cut();
        // So that it comes back from waiting for somebody.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            // A panic there has been printed.
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    /// Waits while nothing may pass; `None` when nothing ever will.
    fn pass(&self) -> Option<Mode> {
        let mut mode = lock(&self.mode);
        while mode.frozen && !mode.closing {
            mode = self.changed.wait(mode).unwrap_or_else(PoisonError::into_inner);
        }
        (!mode.closing && !mode.refusing).then_some(*mode)
    }

    /// Takes the time that so many bytes need.
    fn take_time(&self, bytes: u64, bytes_per_second: u64) {
        let needs = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / bytes_per_second);
        let until = {
            let mut free_at = lock(&self.free_at);
            *free_at = (*free_at).max(Instant::now()) + needs;
            *free_at
        };
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let mode = *lock(&shared.mode);
        if mode.closing {
            return;
        }
        let Ok(client) = client else { continue };
        if mode.refusing {
            continue;
        }
        let Ok(server) = TcpStream::connect(shared.upstream) else { continue };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        // A small answer is wanted now.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let copies = (client.try_clone(), server.try_clone());
        let (Ok(client_too), Ok(server_too)) = copies else { continue };
        for socket in [&client, &server] {
            lock(&shared.open).extend(socket.try_clone());
        }
        let answered = Arc::new(AtomicBool::new(true));
        thread::spawn({
            let (shared, answered) = (Arc::clone(shared), Arc::clone(&answered));
            move || pump(client, server, &shared, &answered, true)
        });
        thread::spawn({
            let shared = Arc::clone(shared);
            move || pump(server_too, client_too, &shared, &answered, false)
        });
    }
}

/// Carries bytes one way until one side ends.
fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    shared: &Shared,
    answered: &AtomicBool,
    is_client: bool,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let Some(mode) = shared.pass() else { break };
        if is_client && mode.keeping && buffer[..count].starts_with(b"DELETE ") {
            // Such a request has no body.
            let refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
            if from.write_all(refusal).is_err() {
                break;
            }
            continue;
        }
        if is_client {
            // A request: the first bytes after an answer.
            if answered.swap(false, Ordering::Relaxed) && !mode.delay.is_zero() {
                thread::sleep(mode.delay);
            }
            if METHODS.iter().any(|method| buffer[..count].starts_with(method.as_bytes())) {
                shared.requests.fetch_add(1, Ordering::Relaxed);
            }
        } else {
            answered.store(true, Ordering::Relaxed);
        }
        if let Some(rate) = mode.bytes_per_second {
            shared.take_time(count as u64, rate);
        }
        // It may have been frozen in the meantime.
        if shared.pass().is_none() {
            break;
        }
        // Whoever sees the bytes must find them counted.
        let counter = if is_client { &shared.sent } else { &shared.received };
        counter.fetch_add(count as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Locks, also after a thread that had it panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says everything again, and a way to it.
    fn echo() -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.expect("accepted");
                thread::spawn(move || {
                    let mut copy = socket.try_clone().expect("a descriptor is to be had");
                    let _ = std::io::copy(&mut socket, &mut copy);
                });
            }
        });
        Proxy::to(port)
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).expect("connects");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("not zero");
        socket
    }

    fn say(socket: &mut TcpStream, text: &str) -> std::io::Result<()> {
        socket.write_all(text.as_bytes())?;
        let mut answer = vec![0; text.len()];
        socket.read_exact(&mut answer)?;
        assert_eq!(answer, text.as_bytes());
        Ok(())
    }

    #[test]
    fn it_counts() {
        let proxy = echo();
        let mut socket = connect(&proxy);
        say(&mut socket, "PUT /a").expect("is answered");
        say(&mut socket, "hello").expect("is answered");
        let before = proxy.traffic();
        assert_eq!(before, Traffic { connections: 1, requests: 1, sent: 11, received: 11 });
        say(&mut connect(&proxy), "GET /a").expect("is answered");
        let since = proxy.traffic().since(before);
        assert_eq!(since, Traffic { connections: 1, requests: 1, sent: 6, received: 6 });
    }

    #[test]
    fn what_is_frozen_comes_later() {
        let proxy = echo();
        let mut socket = connect(&proxy);
        say(&mut socket, "x").expect("is answered");
        proxy.freeze();
        let begin = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| say(&mut socket, "y").expect("is answered"));
            thread::sleep(Duration::from_millis(300));
            assert_eq!(proxy.traffic().sent, 1);
            proxy.mend();
        });
        assert!(begin.elapsed() >= Duration::from_millis(300));
        assert_eq!(proxy.traffic().sent, 2);
    }

    #[test]
    fn what_is_cut_is_gone() {
        let proxy = echo();
        let mut socket = connect(&proxy);
        say(&mut socket, "x").expect("is answered");
        proxy.cut();
        assert!(say(&mut socket, "y").is_err());
        say(&mut connect(&proxy), "z").expect("is answered");
        proxy.refuse();
        assert!(say(&mut connect(&proxy), "z").is_err());
        proxy.mend();
        say(&mut connect(&proxy), "z").expect("is answered");
    }

    #[test]
    fn it_lets_nobody_delete() {
        let proxy = echo();
        let mut socket = connect(&proxy);
        proxy.keep_all();
        say(&mut socket, "PUT /a").expect("is answered");
        socket.write_all(b"DELETE /a HTTP/1.1\r\n\r\n").expect("it is open");
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).expect("is answered");
        assert_eq!(&answer, b"HTTP/1.1 403");
        proxy.mend();
        say(&mut connect(&proxy), "DELETE /a").expect("is answered");
    }

    #[test]
    fn it_takes_its_time() {
        let proxy = echo();
        let mut socket = connect(&proxy);
        proxy.delay(Duration::from_millis(200));
        let begin = Instant::now();
        say(&mut socket, "x").expect("is answered");
        assert!(begin.elapsed() >= Duration::from_millis(200));
        proxy.mend();
        // There and back.
        proxy.limit(100_000);
        let begin = Instant::now();
        say(&mut socket, &"x".repeat(20_000)).expect("is answered");
        assert!(begin.elapsed() >= Duration::from_millis(400));
    }
}
