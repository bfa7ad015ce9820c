//! How each daemon lives: environment, logs, metrics, admin page, readiness, drain.
