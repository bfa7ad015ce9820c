//! From the rules of a route to those that a waypoint applies, once it is known whom they refer to.

use ambit_model::route::{Backend, Destination, Filter, Filters, Mirror, Origin, Route, Rule, StreamRoute};

use super::{
    Rejection,
    route::{Connections, Reference, Requests, RouteBackend, RouteFilter, RouteRule, refused},
};

impl Requests {
    /// The route of requests, with the destinations that `resolve` says. Whether it makes sense does not depend on
    /// them, so what passed the door compiles.
    pub fn compiled(
        &self,
        origin: Origin,
        resolve: impl Fn(&Reference) -> Destination,
    ) -> Result<Route, Rejection> {
        let rules = self.rules.iter().enumerate();
        let rules = rules.map(|(index, rule)| compile_rule(&format!("spec.rules[{index}]"), rule, &resolve));
        let rules = rules.collect::<Result<_, _>>()?;
        Route::new(origin, rules).map_err(|error| refused(format!("spec.rules[{}]", error.rule), error.why))
    }
}

impl Connections {
    /// The route of connections, with the destinations that `resolve` says.
    pub fn compiled(
        &self,
        origin: Origin,
        resolve: impl Fn(&Reference) -> Destination,
    ) -> Result<StreamRoute, Rejection> {
        let names: Vec<_> = self.server_names.iter().map(String::as_str).collect();
        let backends = compile_backends("spec.rules[0]", &self.backends, &resolve)?;
        StreamRoute::new(origin, &names, backends).map_err(|error| refused("spec", error))
    }
}

fn compile_rule(
    field: &str,
    rule: &RouteRule,
    resolve: &impl Fn(&Reference) -> Destination,
) -> Result<Rule, Rejection> {
    Ok(Rule {
        name: rule.name.clone(),
        matches: rule.matches.clone(),
        filters: compile_filters(field, &rule.filters, resolve)?,
        backends: compile_backends(field, &rule.backends, resolve)?,
        timeouts: rule.timeouts,
        retry: rule.retry.clone(),
        session: rule.session.clone(),
    })
}

pub(super) fn compile_backends(
    field: &str,
    backends: &[RouteBackend],
    resolve: &impl Fn(&Reference) -> Destination,
) -> Result<Vec<Backend>, Rejection> {
    let compile = |(index, backend): (usize, &RouteBackend)| {
        let filters = compile_filters(&format!("{field}.backendRefs[{index}]"), &backend.filters, resolve)?;
        Ok(Backend { to: resolve(&backend.to), weight: backend.weight, filters })
    };
    backends.iter().enumerate().map(compile).collect()
}

pub(super) fn compile_filters(
    field: &str,
    filters: &[RouteFilter],
    resolve: &impl Fn(&Reference) -> Destination,
) -> Result<Filters, Rejection> {
    let compile = |(index, filter): (usize, &RouteFilter)| {
        Ok(match filter {
            RouteFilter::Plain(filter) => filter.clone(),
            RouteFilter::Mirror { to, share } => Filter::Mirror(Mirror { to: resolve(to), share: *share }),
            RouteFilter::ExternalAuth { to, how } => {
                let auth = how
                    .asking(resolve(to))
                    .map_err(|error| refused(format!("{field}.filters[{index}].externalAuth"), error))?;
                Filter::ExternalAuth(auth)
            }
        })
    };
    let filters = filters.iter().enumerate().map(compile).collect::<Result<_, Rejection>>()?;
    let filters = Filters::new(filters);
    filters.map_err(|error| refused(format!("{field}.filters"), error))
}
