//! The certificate authority over gRPC: turns a CSR into a chain (protocols 2.4, 3.1, 3.2).
//!
//! [`CaClient`] asks; [`service`] is the shell of the other end, around whoever signs.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use ambit_model::identity::Identity;
use ambit_proto::citadel::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_client::IstioCertificateServiceClient,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use prost_types::{Struct, Value, value::Kind};
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

use crate::{
    cert::{IssueError, Issued, Issuer, SigningRequest},
    channel::{ClientAddress, ControlPlane},
};

/// Asks a CA for certificates.
#[derive(Clone, Debug)]
pub struct CaClient {
    control_plane: ControlPlane,
    asking: Asking,
    lifetime: Duration,
}

/// For whom a CA is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// For the workloads of this node, each by name: shared mode.
    ForOthers,
    /// For ourselves; the CA knows who we are: dedicated mode.
    ForMyself,
}

impl CaClient {
    /// A client that asks for certificates that live for `lifetime`.
    pub fn new(control_plane: ControlPlane, asking: Asking, lifetime: Duration) -> Self {
        Self { control_plane, asking, lifetime }
    }

    async fn create(&self, request: SigningRequest) -> Result<Issued, IssueError> {
        let channel = self.control_plane.channel();
        let metadata = match self.asking {
            Asking::ForOthers => Some(impersonate(&request.identity)),
            Asking::ForMyself => None,
        };
        let request = IstioCertificateRequest {
            csr: request.csr,
            validity_duration: i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata,
        };
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
        Ok(Issued { chain: answer.into_inner().cert_chain })
    }
}

impl Issuer for CaClient {
    fn issue(&self, request: SigningRequest) -> BoxFuture<'_, Result<Issued, IssueError>> {
        self.create(request).boxed()
    }
}

/// What a client asks of a CA, and as whom.
#[derive(Clone)]
pub struct Application {
    /// PEM, PKCS#10.
    pub csr: String,
    /// How long the certificate shall live, in seconds; nothing or less: as long as usual.
    pub lifetime_seconds: i64,
    /// For whom, if not for the caller: as it was written, unchecked.
    pub impersonated: Option<String>,
    /// The caller's token, if it showed one.
    pub token: Option<String>,
    /// The caller's cluster; may be empty.
    pub cluster: String,
    /// Where the caller is.
    pub client: ClientAddress,
}

impl fmt::Debug for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Application")
            .field("impersonated", &self.impersonated)
            .field("lifetime_seconds", &self.lifetime_seconds)
            .field("cluster", &self.cluster)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// Decides about applications. Implemented by the controller, and by test doubles.
pub trait Approver: Send + Sync + 'static {
    /// The chain in the form of protocols 3.2, or the status to refuse with.
    fn decide(&self, application: Application) -> BoxFuture<'_, Result<Vec<String>, Status>>;
}

/// A gRPC service, for `tonic::transport::Server::add_service`, that has `approver` decide.
pub fn service(approver: Arc<dyn Approver>) -> IstioCertificateServiceServer<ApproverService> {
    IstioCertificateServiceServer::new(ApproverService(approver))
}

/// The gRPC side of an [`Approver`].
pub struct ApproverService(Arc<dyn Approver>);

#[tonic::async_trait]
impl IstioCertificateService for ApproverService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let token = bearer(request.metadata());
        let cluster = text(request.metadata(), "clusterid").unwrap_or_default();
        let client = request.extensions().get().copied().unwrap_or(ClientAddress(None));
        let IstioCertificateRequest { csr, validity_duration, metadata } = request.into_inner();
        let application = Application {
            csr,
            lifetime_seconds: validity_duration,
            impersonated: metadata.and_then(impersonated),
            token,
            cluster,
            client,
        };
        let cert_chain = self.0.decide(application).await?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

impl fmt::Debug for ApproverService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApproverService")
    }
}

/// The token of `authorization: Bearer <token>`.
pub fn bearer(metadata: &MetadataMap) -> Option<String> {
    let value = text(metadata, "authorization")?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

fn text(metadata: &MetadataMap, key: &str) -> Option<String> {
    Some(metadata.get(key)?.to_str().ok()?.to_owned())
}

fn impersonated(mut metadata: Struct) -> Option<String> {
    match metadata.fields.remove(IMPERSONATED_IDENTITY)?.kind? {
        Kind::StringValue(identity) => Some(identity),
        // Kept, so that it is refused as an identity and not taken for absent.
        other @ (Kind::NullValue(_)
        | Kind::NumberValue(_)
        | Kind::BoolValue(_)
        | Kind::StructValue(_)
        | Kind::ListValue(_)) => Some(format!("{other:?}")),
    }
}

/// The field of the metadata that names the workload a node proxy asks for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

fn impersonate(identity: &Identity) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(identity.to_string())) };
    Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]) }
}

impl From<Status> for IssueError {
    fn from(status: Status) -> Self {
        let message = match std::error::Error::source(&status) {
            Some(_) => crate::channel::explain(&status),
            None => status.message().to_owned(),
        };
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                Self::Unreachable(message)
            }
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Self::Refused { code: format!("{:?}", status.code()), message },
        }
    }
}
