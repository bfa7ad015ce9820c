//! Asking in gRPC.

use std::time::SystemTime;

use ambit_model::authz::{Answer, GrpcCheck};
use ambit_wire::{
    ext_authz::{self, Check},
    unary::Sent,
};

use super::{Asking, Authorizers, Failure, Question};

impl Authorizers {
    pub(super) async fn grpc(
        &self,
        asking: &Asking<'_>,
        question: &Question<'_>,
        told: &GrpcCheck,
        now: SystemTime,
    ) -> Result<Answer, Failure> {
        let form = asking.authorizer.parts().body.map(|shared| shared.form);
        let body = form.zip(asking.shown.as_ref()).map(|(form, beginning)| beginning.shown(form));
        let check = Check {
            source: question.client.address,
            principal: question.client.identity.as_ref(),
            destination: question.address,
            own: &self.shared().settings.identity,
            service: question.target.service().map_or("", |service| service.hostname.as_str()),
            head: question.head,
            told,
            version: question.spoken,
            time: now,
            body,
        };
        let send = |request| -> Sent<'_> { self.upstream.call(&asking.exchange, request) };
        Ok(ext_authz::ask(&check, asking.origin.clone(), &send).await?)
    }
}
