//! A holder that crashes: nobody gives its lock back, and it is free all the same when its time is over.
//!
//! ```sh
//! cargo run --example crashed_holder
//! ```

use std::process::Stdio;
use std::time::{Duration, Instant};

use redlockd::client::{AcquireError, Client};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

mod stage;
use stage::{Error, Stage, ensure};

const JOB: &str = "jobs/report";

/// So long a lock stays taken whose holder is gone, at most.
const TTL: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), Error> {
    // The holder is a process of its own, so that it can be killed.
    match std::env::args().nth(1) {
        Some(proxy) => hold(proxy).await,
        None => show().await,
    }
}

/// The holder: takes the lock and works for ever.
async fn hold(proxy: String) -> Result<(), Error> {
    let client = Client::builder([proxy]).owner("the holder").connect().await?;
    let lease = client.lock(JOB).ttl(TTL).acquire().await?;
    println!("{}", lease.token().ok_or("a lease without a token")?);
    Err(lease.lost().await.into())
}

async fn show() -> Result<(), Error> {
    let stage = Stage::set(1).await?;
    let program = std::env::current_exe()?;
    let mut holder = Command::new(program).args(&stage.proxies).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(holder.stdout.take().ok_or("its output")?).lines();
    let its_token: u64 = lines.next_line().await?.ok_or("the holder ended early")?.parse()?;
    println!("the holder works under the lock, with token {its_token}; the lock lasts {TTL:?} and is renewed");

    let client = Client::connect(stage.proxies.clone()).await?;
    match client.lock(JOB).acquire().await {
        Err(AcquireError::Contended(by)) => {
            println!("somebody else is told that {} has it", by.owner.as_deref().unwrap_or("nobody"));
        }
        Err(error) => return Err(error.into()),
        Ok(_) => return Err("two have the lock".into()),
    }

    holder.kill().await?;
    let crashed = Instant::now();
    println!("the holder is killed: it releases nothing, and nobody renews its lock");
    let lease = client.lock(JOB).wait(Duration::from_secs(60)).acquire().await?;
    let token = lease.token().ok_or("a lease without a token")?.get();
    println!("somebody else has the lock {:.1?} after the crash, with token {token}", crashed.elapsed());
    ensure(token > its_token, "the token does not rise")?;
    lease.release().await?;
    client.shutdown().await;
    Ok(())
}
