//! Requests that a guest sends by `wasi:http`: names by our own resolver, connections only where the grants reach,
//! TLS against the container's own certificates if it has any. wasmtime-wasi-http's way of sending would call
//! getaddrinfo.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme, Uri};
use http_body_util::BodyExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::body::Watched;
use super::grants::{Grants, Network};
use super::names::{Failure, Names};

/// For each step for which the guest sets no time, as wasmtime-wasi-http.
const PATIENCE: Duration = Duration::from_secs(600);
/// Where distributions keep the certificates they trust; the first that is there.
const CERTIFICATES: [&str; 3] =
    ["etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt", "etc/ssl/cert.pem"];

#[derive(Clone)]
pub struct Outbound(Arc<Inner>);

struct Inner {
    names: Arc<Names>,
    network: Network,
    /// OpenSSL's SSL_CERT_FILE, which images set.
    certificates: Option<String>,
    tls: OnceLock<Arc<ClientConfig>>,
}

type Answer = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _response_error: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Answer, Error>> + Send> {
        let inner = self.0.clone();
        Box::new(async move { inner.send(request, options.unwrap_or_default()).await })
    }
}

/// A certificate that is not trusted, told from all else that may go wrong.
fn tls_error(error: std::io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
        _ => Error::Tls(error),
    }
}

impl Outbound {
    pub fn new(names: Arc<Names>, grants: &Grants) -> Outbound {
        let variable = grants.env.iter().rfind(|(key, value)| key == "SSL_CERT_FILE" && !value.is_empty());
        Outbound(Arc::new(Inner {
            names,
            network: grants.network.clone(),
            certificates: variable.map(|(_, path)| path.clone()),
            tls: OnceLock::new(),
        }))
    }

    /// For connections that the guest makes by itself; `None` where an annotation does not grant it.
    pub fn tls(&self) -> Option<Arc<ClientConfig>> {
        self.0.network.tls.then(|| self.0.client_config())
    }
}

impl Inner {
    fn client_config(&self) -> Arc<ClientConfig> {
        self.tls.get_or_init(|| Arc::new(self.trusting())).clone()
    }

    async fn send(
        &self,
        mut request: http::Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Answer, Error> {
        if !self.network.http {
            return Err(Error::HttpRequestDenied);
        }
        let connecting = self.connect(request.uri());
        let stream = timeout(options.connect_timeout.unwrap_or(PATIENCE), connecting)
            .await
            .map_err(|_| Error::ConnectionTimeout)??;
        // Scheme and authority are for proxies only.
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));

        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut connection = Box::pin(connection);
        let mut ended = false;
        let answer = timeout(options.first_byte_timeout.unwrap_or(PATIENCE), async {
            let sent = sender.send_request(request);
            tokio::pin!(sent);
            // The connection moves only while it is polled.
            tokio::select! {
                biased;
                answer = &mut sent => Ok(answer?),
                end = &mut connection => {
                    end?;
                    ended = true;
                    Ok::<_, Error>(sent.await?)
                }
            }
        });
        let response = answer.await.map_err(|_| Error::ConnectionReadTimeout)??;
        let pause = options.between_bytes_timeout.unwrap_or(PATIENCE);
        let watch = |body| Watched::new(body, pause, None, || Error::ConnectionReadTimeout).boxed_unsync();
        let rest = async move { if ended { Ok(()) } else { connection.await.map_err(Error::from) } };
        Ok((response.map(watch), Box::new(rest)))
    }

    async fn connect(&self, uri: &Uri) -> Result<Box<dyn Stream>, Error> {
        let tls = uri.scheme() == Some(&Scheme::HTTPS);
        let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let stream = self.reach(&self.addresses(host).await?, port).await?;
        if !tls {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
        let config = self.client_config();
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(tls_error)?;
        Ok(Box::new(stream))
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Error> {
        let rcode = |text: &str| Error::DnsError { rcode: Some(text.to_owned()), info_code: None };
        self.names.resolve(host).await.map_err(|failure| match failure {
            Failure::Denied => Error::HttpRequestDenied,
            Failure::Invalid => Error::HttpRequestUriInvalid,
            Failure::Unknown => rcode("NXDOMAIN"),
            Failure::Temporary => rcode("SERVFAIL"),
        })
    }

    /// The first address that answers. What the grants do not reach is not tried, whatever a name server says.
    async fn reach(&self, addresses: &[IpAddr], port: u16) -> Result<TcpStream, Error> {
        let mut last = Error::DestinationIpProhibited;
        for address in addresses.iter().map(|address| SocketAddr::new(*address, port)) {
            if !self.network.allows(address) {
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Best effort: it only costs time.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => last = Error::Connect(error),
            }
        }
        Err(last)
    }

    /// The container's certificates, as for any program in it; Mozilla's where it has none.
    fn trusting(&self) -> ClientConfig {
        let paths = self.certificates.as_deref().into_iter().chain(CERTIFICATES);
        let mut roots = RootCertStore::empty();
        if let Some(bundle) = paths.into_iter().find_map(|path| self.names.read(path)) {
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bundle).flatten());
        }
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
    }
}
