//! Where this worker's ring listens, and under which address others reach it.

use ballast_proto::{ErrorCode, Failure};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

/// Binds the ring's listener; returns it with the address to advertise.
pub(super) fn listen(bind: &str, advertise: Option<&str>, insecure: bool) -> Result<(TcpListener, String), Failure> {
    let failed =
        |why: &dyn std::fmt::Display| Failure::new(ErrorCode::BindFailed, format!("--ring-bind {bind}: {why}"));
    let port = bind.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(_))) {
        let message = format!("--ring-bind {bind}: no address; give it as host:port, such as 127.0.0.1:0");
        return Err(Failure::new(ErrorCode::RunFileBadValue, message));
    }
    let addresses: Vec<SocketAddr> = bind.to_socket_addrs().map_err(|e| failed(&e))?.collect();
    if !insecure && addresses.iter().any(|address| !address.ip().is_loopback()) {
        return Err(Failure::new(
            ErrorCode::InsecureBind,
            format!(
                "--ring-bind {bind} is reachable from other hosts, and the ring has no TLS and no tokens yet: \
                 bind a loopback address, or add --insecure in a network you trust"
            ),
        ));
    }
    let listener = TcpListener::bind(&*addresses).map_err(|e| failed(&e))?;
    let bound = listener.local_addr().map_err(|e| failed(&e))?;
    let advertised = match advertise {
        Some(address) => with_port(address, bound.port()),
        None if bound.ip().is_unspecified() => {
            return Err(failed(&"no other host can reach this address: name the one they can with --ring-advertise"));
        }
        None => bound.to_string(),
    };
    Ok((listener, advertised))
}

/// An advertised address may leave the port out (or 0), when the port is known only now.
fn with_port(address: &str, port: u16) -> String {
    match address.rsplit_once(':') {
        Some((host, "0")) => format!("{host}:{port}"),
        Some((host, number)) if number.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')) => {
            address.to_owned()
        }
        _ if address.contains(':') && !address.starts_with('[') => format!("[{address}]:{port}"),
        _ => format!("{address}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_advertised_as_bound() {
        let (listener, advertised) = listen("127.0.0.1:0", None, false).unwrap();
        assert_eq!(advertised, listener.local_addr().unwrap().to_string());
    }

    #[test]
    fn wider_binds_need_insecure_and_a_name() {
        let refused = |bind, advertise, insecure| listen(bind, advertise, insecure).unwrap_err().code;
        assert_eq!(refused("0.0.0.0:0", Some("10.0.0.1"), false), ErrorCode::InsecureBind);
        assert_eq!(refused("0.0.0.0:0", None, true), ErrorCode::BindFailed);
        for nonsense in ["nonsense", ":1", "host:", "host:65536", ""] {
            assert_eq!(refused(nonsense, None, true), ErrorCode::RunFileBadValue);
        }
        let (listener, advertised) = listen("0.0.0.0:0", Some("10.0.0.1"), true).unwrap();
        assert_eq!(advertised, format!("10.0.0.1:{}", listener.local_addr().unwrap().port()));
    }

    #[test]
    fn advertised_ports() {
        for (given, advertised) in [
            ("host", "host:9"),
            ("host:0", "host:9"),
            ("host:7", "host:7"),
            ("[fe80::1]:7", "[fe80::1]:7"),
            ("[fe80::1]:0", "[fe80::1]:9"),
            ("[fe80::1]", "[fe80::1]:9"),
            ("fe80::1", "[fe80::1]:9"),
        ] {
            assert_eq!(with_port(given, 9), advertised);
        }
    }
}
