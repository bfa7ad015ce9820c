//! Asking in gRPC.

use std::time::SystemTime;

use ambit_model::authz::Answer;
use ambit_wire::ext_authz::{self, Check, SendError, Sent};
use http::Response;

use super::{Asking, Authorizers, Failure, Question};
use crate::upstream::pool::Version;

impl Authorizers {
    pub(super) async fn grpc(
        &self,
        asking: &Asking<'_>,
        question: &Question<'_>,
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
            version: question.spoken,
            time: now,
            body,
        };
        let send = |request| -> Sent<'_> {
            let address = question.address;
            Box::pin(async move {
                let answer = self.exchange(asking, address, Version::Http2, request).await;
                let (head, body) = answer.map_err(|failure| SendError(failure.to_string()))?;
                Ok(Response::from_parts(head, body))
            })
        };
        Ok(ext_authz::ask(&check, asking.origin.clone(), &send).await?)
    }
}
