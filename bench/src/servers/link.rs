//! Questions to a Redis server itself, past the proxy: too few and too simple for a client library.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::PATIENCE;
use crate::Error;

/// A connection to a server.
pub struct Link {
    server: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Link {
    /// Opens one.
    pub async fn open(server: SocketAddr) -> Result<Self, Error> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        Ok(Self { server, stream: BufReader::new(stream) })
    }

    /// How many commands the server has carried out since it started; those within scripts count too.
    pub async fn commands_processed(&mut self) -> Result<u64, Error> {
        let stats = self.ask("INFO stats").await?;
        let count = stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        count.and_then(|count| count.trim().parse().ok()).ok_or_else(|| format!("{}: no count in its INFO", self.server).into())
    }

    /// The milliseconds that are left of a key, rounded down; none if it is not there, or does not expire.
    pub async fn time_left_ms(&mut self, key: &str) -> Result<Option<u64>, Error> {
        let reply = self.ask(&format!("PTTL {key}")).await?;
        let left: i64 = reply.parse().map_err(|_| format!("{}: an unknown reply to PTTL: {reply:?}", self.server))?;
        Ok(u64::try_from(left).ok())
    }

    /// Changes what clients without a name of their own may do, such as `-publish`.
    pub async fn allow(&mut self, rule: &str) -> Result<(), Error> {
        self.ask(&format!("ACL SETUSER default {rule}")).await.map(drop)
    }

    /// The reply to an inline command.
    async fn ask(&mut self, command: &str) -> Result<String, Error> {
        let answer = async {
            self.stream.write_all(format!("{command}\r\n").as_bytes()).await?;
            reply(&mut self.stream).await
        };
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(reply) => reply.map_err(|error| format!("{}: {command}: {error}", self.server).into()),
            Err(_) => Err(format!("{}: {command}: no answer within {PATIENCE:?}", self.server).into()),
        }
    }
}

/// A number or a text; anything else is an error.
async fn reply(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Result<String, Error> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let line = line.trim_end();
    if let Some(short) = line.strip_prefix([':', '+']) {
        return Ok(short.to_owned());
    }
    let Some(length) = line.strip_prefix('$').and_then(|length| length.parse().ok()) else {
        return Err(format!("an unknown reply: {line:?}").into());
    };
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await?;
    // The line end that follows the text.
    stream.read_exact(&mut [0; 2]).await?;
    Ok(String::from_utf8(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn numbers_and_texts_are_replies_one_after_the_other() {
        let mut stream = &b":-2\r\n$4\r\na\r\nb\r\n:17\r\n-ERR what?\r\n"[..];
        assert_eq!(reply(&mut stream).await.unwrap(), "-2");
        assert_eq!(reply(&mut stream).await.unwrap(), "a\r\nb");
        assert_eq!(reply(&mut stream).await.unwrap(), "17");
        assert!(reply(&mut stream).await.unwrap_err().to_string().contains("what?"));
        assert!(reply(&mut stream).await.is_err(), "the end");
    }
}
