//! `wasi:tls`: TLS for a guest's own connections, against the certificates that its outgoing requests trust.

use std::future::Future;
use std::pin::Pin;

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use wasmtime_wasi_tls::{Error, TlsProvider, TlsStream, TlsTransport, WasiTlsCtx, WasiTlsCtxBuilder};

use super::outbound::Outbound;

struct Provider(Outbound);

type Connecting = Pin<Box<dyn Future<Output = Result<Box<dyn TlsStream>, Error>> + Send>>;

pub fn context(outbound: &Outbound) -> WasiTlsCtx {
    WasiTlsCtxBuilder::new().provider(Box::new(Provider(outbound.clone()))).build()
}

impl TlsProvider for Provider {
    fn connect(&self, name: String, transport: Box<dyn TlsTransport>) -> Connecting {
        let outbound = self.0.clone();
        Box::pin(async move {
            let config = outbound.tls().ok_or_else(|| Error::msg("an annotation does not grant TLS"))?;
            let name = ServerName::try_from(name).map_err(|_| Error::msg("invalid server name"))?;
            let stream = TlsConnector::from(config).connect(name, transport).await?;
            Ok(Box::new(stream) as Box<dyn TlsStream>)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use crate::executor::testing::scratch;
    use crate::executor::wasm::grants::{Given, PREFIX, grants};
    use crate::executor::wasm::names::Names;

    const ADDRESS: &str = "127.0.72.1:4433";

    struct Server(Child);

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Debian's own, with a certificate for tls.test that it signed itself; `None` where there is no openssl.
    fn server(dir: &Path) -> Option<Server> {
        std::fs::write(dir.join("config"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
        let key = "req -x509 -config config -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=tls.test \
            -addext subjectAltName=DNS:tls.test -keyout key -out cert";
        let made = Command::new("openssl").args(key.split_whitespace()).current_dir(dir).output();
        made.ok().filter(|made| made.status.success())?;
        let serve = ["s_server", "-quiet", "-rev", "-key", "key", "-cert", "cert", "-accept", ADDRESS];
        let child = Command::new("openssl")
            .args(serve)
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let server = Server(child);
        let begun = Instant::now();
        while std::net::TcpStream::connect(ADDRESS).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it never listened");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(server)
    }

    fn provider(tree: &Path, network: &str) -> Provider {
        let annotations = vec![(format!("{PREFIX}network"), network.to_owned())];
        let env = vec!["SSL_CERT_FILE=/cert".to_owned()];
        let grants = grants(&Given { annotations, env, ..Given::default() }).unwrap();
        let tree = OwnedFd::from(std::fs::File::open(tree).unwrap());
        Provider(Outbound::new(Arc::new(Names::new(tree, true)), &grants))
    }

    fn talk(provider: &Provider, name: &str) -> Result<String, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let transport = Box::new(TcpStream::connect(ADDRESS).await.unwrap());
            let mut stream =
                provider.connect(name.to_owned(), transport).await.map_err(|error| error.to_string())?;
            stream.write_all(b"word\n").await.unwrap();
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await.unwrap();
            Ok(String::from_utf8_lossy(&answer).into_owned())
        })
    }

    /// The same as for outgoing requests: the container's certificates, the name, and the annotation.
    #[test]
    fn a_connection_needs_a_trusted_name_and_the_grant() {
        let dir = scratch("tls");
        let Some(_server) = server(&dir) else { return };
        assert_eq!(talk(&provider(&dir, "tcp,tls"), "tls.test").as_deref(), Ok("drow\n"));
        let error = talk(&provider(&dir, "tcp,tls"), "other.test").unwrap_err();
        assert!(error.contains("not valid for name"), "{error}");
        let error = talk(&provider(&dir.join(".."), "tcp,tls"), "tls.test").unwrap_err();
        assert!(error.contains("UnknownIssuer"), "{error}");
        let error = talk(&provider(&dir, "tcp,http"), "tls.test").unwrap_err();
        assert_eq!(error, "an annotation does not grant TLS");
    }
}
