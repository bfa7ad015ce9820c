//! How much of what is sent to each service may be repetitions (GEP-3388).

use std::sync::{Arc, Mutex, PoisonError};

use ambit_model::{
    name::ServiceKey,
    route::{Budget, BudgetPolicy},
};
use ambit_proxy::metrics::Lock;
use hashbrown::HashMap;

/// How many services have a budget before those without a request under way lose theirs, which is a full one.
const MOST: usize = 4096;

/// The budgets of all services.
#[derive(Debug, Default)]
pub struct Budgets(Mutex<HashMap<ServiceKey, Arc<Lock<Budget>>>>);

impl Budgets {
    /// That of one service.
    pub fn of(&self, service: &ServiceKey) -> Arc<Lock<Budget>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(budget) = all.get(service) {
            return budget.clone();
        }
        if all.len() >= MOST {
            all.retain(|_, budget| Arc::strong_count(budget) > 1);
        }
        let budget = Arc::new(Lock::new(Budget::new(BudgetPolicy::default())));
        all.insert(service.clone(), budget.clone());
        budget
    }
}
