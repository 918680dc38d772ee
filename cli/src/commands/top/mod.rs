//! `onceward top`: shows the figures of a running process, again each second.

mod client;
mod frame;

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::args::TopArgs;
use crate::config::{Config, Lookup};
use crate::exit::{Exit, Failure};
use crate::output::{Output, OutputError};
use crate::signals::Signals;
use crate::telemetry::LiveStatus;

/// The interval between frames.
const PAUSE: Duration = Duration::from_secs(1);

/// Another screen, without cursor and line wrapping; and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &[u8] = b"\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Shows the figures until a signal, or once.
pub(super) async fn top(args: &TopArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let config = super::failure::load(&args.config.file, env)?;
    let address = address(&config, args.address)?;
    let first = client::read(address).await.map_err(|what| no_answer(address, &what))?;
    if args.once {
        show(&first, None, false, out)?;
        return Ok(Exit::Done);
    }
    let mut signals = Signals::catch()?;
    let is_terminal = std::io::stdout().is_terminal();
    if is_terminal {
        out.write(ENTER)?;
    }
    let shown = tokio::select! {
        biased;
        _ = signals.next() => Ok(()),
        shown = redraw(first, address, is_terminal, out) => shown,
    };
    if is_terminal {
        out.write(LEAVE)?;
    }
    shown?;
    Ok(Exit::Done)
}

/// Shows a frame each second; while the process does not answer, the last one with the reason.
async fn redraw(
    first: LiveStatus,
    address: SocketAddr,
    is_terminal: bool,
    out: &mut Output,
) -> Result<(), OutputError> {
    let (mut status, mut silence) = (first, None);
    loop {
        show(&status, silence.as_deref(), is_terminal, out)?;
        tokio::time::sleep(PAUSE).await;
        match client::read(address).await {
            Ok(read) => (status, silence) = (read, None),
            Err(what) => silence = Some(format!("{address} does not answer ({what}); these figures are old")),
        }
    }
}

fn show(
    status: &LiveStatus,
    silence: Option<&str>,
    is_terminal: bool,
    out: &mut Output,
) -> Result<(), OutputError> {
    let mut lines = frame::frame(status);
    lines.extend(silence.map(str::to_owned));
    if !is_terminal {
        lines.push(String::new());
        return out.write(lines.join("\n").as_bytes());
    }
    // Each line clears its rest, and the last one what is below: nothing flickers.
    out.write(format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n")).as_bytes())
}

/// Where the process answers: what listens on all addresses answers on the loopback.
fn address(config: &Config, given: Option<SocketAddr>) -> Result<SocketAddr, Failure> {
    let listen = given.or(config.telemetry.listen).ok_or_else(|| {
        let fix = r#"add listen = "127.0.0.1:9464" to [telemetry] and restart the process"#;
        config.refuse("telemetry.listen", "is not set, so that a run shows no figures", fix)
    })?;
    if listen.port() == 0 {
        let fix = "write a port, or give --address with the one in the log of the process";
        return Err(config.refuse("telemetry.listen", "has port 0, which another start changes", fix).into());
    }
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, listen.port()))
}

fn no_answer(address: SocketAddr, what: &str) -> Failure {
    let sentence = format!(
        "nothing shows figures on {address} ({what}); start `onceward run` with this configuration, or give the --address of the process"
    );
    Failure::new(Exit::Failed, sentence)
}
