//! What becomes of an endpoint, by what came of a request to it.

use std::time::Duration;

use ambit_model::{
    name::Uid,
    snapshot::{Endpoints as Known, Snapshot},
    traffic::{Compared, Outliers},
};

use super::{
    Upstream,
    choose::{Choice, Endpoint},
    endpoints::{Doing, Question, Standing},
    health::{Health, Outcome},
};

/// What a request says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What came of it.
    pub outcome: Outcome,
    /// For how long the endpoint asks to be passed over.
    pub rest: Option<Duration>,
    /// How long it took.
    pub took: Duration,
}

impl Upstream {
    /// Tells an endpoint that was chosen what came of it. `Some`: from now on it gets less, or nothing.
    pub fn judge(
        &self,
        mesh: &Snapshot,
        choice: &Choice<'_>,
        chosen: &Endpoint,
        verdict: &Verdict,
    ) -> Option<Standing> {
        let shared = self.shared();
        let usual = Outliers::default();
        let policy = choice.goal.terms().and_then(|terms| terms.policy.as_ref());
        let outliers = policy.map_or(&usual, |policy| &policy.outliers);
        let now = shared.settings.started.elapsed();
        let Verdict { outcome, rest, took } = *verdict;
        // Whoever refuses at once is not fast.
        if outcome == Outcome::Nothing {
            return None;
        }
        let doing = &chosen.doing;
        let before = doing.standing(now);
        doing.took(took);
        let judged = self.ask(mesh, choice, &[], |question| {
            let known = mesh.endpoints(&question.wanted.service.key())?;
            let rest = rest.filter(|_| shared.endpoints.admit_one_more_resting(question, known, doing));
            if rest.is_some_and(|rest| doing.rest(now, rest)) {
                shared.metrics.rested();
            }
            self.ended((doing, outcome, now), outliers, Some((question, known)));
            // What was under way when it was set aside says nothing new.
            let counted = !matches!(before, Standing::Aside(..));
            if let (true, Some(by), Some(kept)) = (counted, &outliers.success_rate, question.kept)
                && let Some(went_well) = outcome.went_well(outliers)
                && let Some(compared) = kept.rated(&chosen.workload.uid, went_well, now, by)
            {
                self.compared(&compared, outliers, question, known);
            }
            Some(())
        });
        if judged.flatten().is_none() {
            self.ended((doing, outcome, now), outliers, None);
        }
        let after = doing.standing(now);
        (after != before && after != Standing::Ready).then_some(after)
    }

    /// An endpoint, after an outcome. `among`: of which service, and who else is its endpoint.
    fn ended(
        &self,
        (doing, outcome, now): (&Doing, Outcome, Duration),
        outliers: &Outliers,
        among: Option<(&Question<'_>, &Known)>,
    ) {
        let shared = self.shared();
        let may_be = || {
            among.is_none_or(|(question, known)| shared.endpoints.admit_one_more(question, known, outliers))
        };
        let step = |health: Health, may_be| health.after(outcome, now, outliers, may_be);
        if let Some(why) = shared.endpoints.step(doing, now, step, may_be) {
            shared.metrics.ejected(why);
        }
    }

    /// All endpoints that were compared: the worst first, as long as the floor admits it.
    fn compared(&self, compared: &Compared, outliers: &Outliers, question: &Question<'_>, known: &Known) {
        let shared = self.shared();
        let now = question.now;
        let doing = |uid: &Uid| known.get(uid).and_then(|_| shared.endpoints.known(question, uid));
        for doing in compared.low.iter().filter_map(doing) {
            let may_be = || shared.endpoints.admit_one_more(question, known, outliers);
            let step = |health: Health, may_be| health.stands_out(now, outliers, may_be);
            if let Some(why) = shared.endpoints.step(&doing, now, step, may_be) {
                shared.metrics.ejected(why);
            }
        }
        for doing in compared.fair.iter().filter_map(doing) {
            shared.endpoints.step(&doing, now, |health, _| health.keeps_up(now), || true);
        }
    }
}
