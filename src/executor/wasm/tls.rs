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
