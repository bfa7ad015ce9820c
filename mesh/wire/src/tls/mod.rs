//! TLS between mesh members: one provider, one profile, SPIFFE verification, revocation.
