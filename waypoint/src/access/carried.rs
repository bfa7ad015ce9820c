//! The records of what is not looked into: a connection that is carried, a tunnel or stream that is refused at once.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_model::{address::Target, service::Service, workload::Workload};
use ambit_proxy::metrics::{AppIs, Ends, Labels, Peer, Traffic, WELL};
use ambit_wire::copy::Meter;

use super::{Records, template::Facts};
use crate::{accept::arrival::Client, metrics::REPORTER, refusal::Refusal};

/// The record of a connection that is not looked into. It must be [closed](Self::close).
#[derive(Debug)]
#[must_use = "a record is written when it is closed"]
pub struct Carried {
    records: Arc<Records>,
    at: Instant,
    client: Arc<Client>,
    asked: Target,
    service: Option<Arc<Service>>,
    upstream: Arc<Workload>,
    address: SocketAddr,
    /// Which end a copy calls the application.
    app: AppIs,
    meter: Arc<Meter>,
    traffic: Arc<Traffic>,
    /// What its TLS greets; kept for the template alone.
    server_name: Option<String>,
}

impl Carried {
    /// A connection is about to be carried to `upstream`.
    pub fn open(
        records: &Arc<Records>,
        client: &Arc<Client>,
        asked: &Target,
        service: Option<Arc<Service>>,
        (upstream, address): (Arc<Workload>, SocketAddr),
        app: AppIs,
    ) -> Self {
        let labels = Labels {
            reporter: REPORTER,
            ends: Ends {
                source: Peer { workload: client.workload.as_ref(), identity: client.identity.as_ref() },
                destination: Peer { workload: Some(&upstream), identity: None },
                service: service.as_ref(),
            },
            mutual_tls: client.identity.is_some(),
            flag: WELL,
        };
        let meter = Arc::new(Meter::default());
        let traffic = records.metrics.traffic.opened(&labels, meter.clone(), app);
        let (client, asked) = (client.clone(), asked.clone());
        Self {
            records: records.clone(),
            at: Instant::now(),
            client,
            asked,
            service,
            upstream,
            address,
            app,
            meter,
            traffic,
            server_name: None,
        }
    }

    /// Its TLS greets this name.
    pub fn greeting(mut self, name: Option<&str>) -> Self {
        self.server_name = name.filter(|_| self.records.template.is_some()).map(str::to_owned);
        self
    }

    /// Counts the bytes.
    pub fn meter(&self) -> Arc<Meter> {
        self.meter.clone()
    }

    /// Counts the connection as closed, and writes it to the log.
    pub fn close(self, outcome: Result<(), &Refusal>) {
        let flag = outcome.map_or_else(Refusal::flag, |()| WELL);
        let (received, sent) = match self.app {
            AppIs::Client => (self.meter.from_app(), self.meter.to_app()),
            AppIs::Server => (self.meter.to_app(), self.meter.from_app()),
        };
        self.records.metrics.traffic.closed(&self.traffic, &self.meter, flag);
        if let Err(refusal) = outcome {
            self.records.metrics.refused(refusal);
        }
        if let Some(template) = &self.records.template {
            let facts = Facts {
                termination: outcome.err().map(ToString::to_string),
                received,
                sent,
                upstream: Some(self.address),
                attempts: 1,
                service: self.service.as_ref().map(|service| service.hostname.as_str()),
                client: Some(self.client.address),
                asked: Some(&self.asked),
                server_name: self.server_name.as_deref(),
                peer: self.client.identity.as_ref(),
                ..Facts::new(self.at.elapsed(), flag)
            };
            return self.records.write(template, &facts);
        }
        tracing::event!(
            target: "access",
            parent: None,
            tracing::Level::INFO,
            src.addr = %self.client.address,
            src.workload = self.client.workload.as_ref().map(|one| one.name.as_str()),
            src.namespace = self.client.workload.as_ref().map(|one| one.namespace.as_str()),
            src.identity = self.client.identity.as_ref().map(ToString::to_string).as_deref(),
            dst.asked = %self.asked,
            dst.service = self.service.as_ref().map(|service| service.hostname.as_str()),
            dst.addr = %self.address,
            dst.workload = self.upstream.name.as_str(),
            flag = flag,
            bytes_recv = received,
            bytes_sent = sent,
            duration = format!("{}ms", self.at.elapsed().as_millis()).as_str(),
            error = outcome.err().map(ToString::to_string).as_deref(),
            "connection complete"
        );
    }
}

/// A tunnel or stream is refused before anything is known of it: one line, and no traffic is counted.
pub fn refused_early(records: &Records, client: SocketAddr, asked: Option<&Target>, refusal: &Refusal) {
    records.metrics.refused(refusal);
    if let Some(template) = &records.template {
        let facts = Facts {
            details: Some(refusal.word()),
            termination: Some(refusal.to_string()),
            client: Some(client),
            asked,
            ..Facts::new(Duration::ZERO, refusal.flag())
        };
        return records.write(template, &facts);
    }
    tracing::event!(
        target: "access",
        parent: None,
        tracing::Level::WARN,
        src.addr = %client,
        dst.asked = asked.map(tracing::field::display),
        flag = refusal.flag(),
        error = refusal.to_string().as_str(),
        advice = refusal.advice(),
        "connection failed"
    );
}
