//! Whether a request, and the certificate that others made of it, are for one identity and for nothing else.
//!
//! Our own authority takes nothing of a request but its key. Another signs what the request says, so here every word of
//! it must be one that the caller may say.

use ambit_model::identity::Identity;
use ambit_wire::cert::authority::{SignError, applicant};
use boring::x509::{X509, X509Req};
use x509_parser::{
    certificate::X509Certificate,
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

/// The only attribute that a request may have: it asks for extensions (PKCS#9).
const EXTENSION_REQUEST: &str = "1.2.840.113549.1.9.14";

/// Checks that `csr` asks for a certificate of `identity`, with an empty subject, one URI name and no other wish.
pub fn request(csr: &str, identity: &Identity) -> Result<X509Req, SignError> {
    let wrong = |why| Err(SignError::Request(why));
    let request = applicant(csr)?;
    let der = request.to_der()?;
    let Ok((rest, parsed)) = X509CertificationRequest::from_der(&der) else {
        return wrong("it cannot be read");
    };
    let info = &parsed.certification_request_info;
    if !rest.is_empty() || info.subject.iter().count() != 0 {
        return wrong("its subject is not empty; cert-manager would sign what it says");
    }
    let attributes: Vec<_> = info.iter_attributes().map(|attribute| attribute.oid.to_id_string()).collect();
    if attributes != [EXTENSION_REQUEST] {
        return wrong("it must ask for one name and nothing else; cert-manager would sign what it says");
    }
    let Some(extensions) = parsed.requested_extensions() else {
        return wrong("it names nobody; cert-manager would sign it so");
    };
    let mut extensions = extensions;
    let (Some(ParsedExtension::SubjectAlternativeName(names)), None) = (extensions.next(), extensions.next())
    else {
        return wrong("it asks for more than a name; cert-manager would sign what it says");
    };
    if names.general_names != [GeneralName::URI(&identity.to_string())] {
        return wrong("it names others than the identity that the caller may have");
    }
    Ok(request)
}

/// Checks that `leaf` is a certificate for the key of `request`, names `identity` alone, and may not sign.
pub fn certificate(leaf: &X509, request: &X509Req, identity: &Identity) -> Result<(), &'static str> {
    let unreadable = "it cannot be read";
    let (ours, theirs) = (request.public_key(), leaf.public_key());
    let (Ok(ours), Ok(theirs)) = (ours, theirs) else { return Err(unreadable) };
    if !ours.public_eq(&theirs) {
        return Err("it is for another key");
    }
    let der = leaf.to_der().map_err(|_| unreadable)?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| unreadable)?;
    let names = parsed.subject_alternative_name().map_err(|_| unreadable)?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    if names != [GeneralName::URI(&identity.to_string())] {
        return Err("it does not name the identity, or not alone");
    }
    if parsed.is_ca() {
        return Err("it may sign others");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use ambit_wire::cert::{
        authority::{Authority, Serial},
        request::Request,
    };
    use boring::{
        ec::{EcGroup, EcKey},
        hash::MessageDigest,
        nid::Nid,
        pkey::PKey,
        stack::Stack,
        x509::{
            X509NameBuilder,
            extension::{BasicConstraints, SubjectAlternativeName},
        },
    };

    use super::{super::authority::starting, *};

    fn cart() -> Identity {
        Identity::new("cluster.local", "shop", "cart")
    }

    fn csr(
        subject: Option<&str>,
        names: &dyn Fn(&mut SubjectAlternativeName) -> &mut SubjectAlternativeName,
        ca: bool,
    ) -> String {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut csr = X509Req::builder().unwrap();
        let mut name = X509NameBuilder::new().unwrap();
        if let Some(subject) = subject {
            name.append_entry_by_text("CN", subject).unwrap();
        }
        csr.set_subject_name(&name.build()).unwrap();
        csr.set_pubkey(&key).unwrap();
        let mut san = SubjectAlternativeName::new();
        names(&mut san);
        let mut extensions = Stack::new().unwrap();
        extensions.push(san.build(&csr.x509v3_context(None)).unwrap()).unwrap();
        if ca {
            extensions.push(BasicConstraints::new().ca().build().unwrap()).unwrap();
        }
        csr.add_extensions(&extensions).unwrap();
        csr.sign(&key, MessageDigest::sha256()).unwrap();
        String::from_utf8(csr.build().to_pem().unwrap()).unwrap()
    }

    #[test]
    fn a_request_for_the_identity_alone_is_taken_and_no_other() {
        let uri = cart().to_string();
        assert!(request(&Request::new(&cart()).unwrap().csr, &cart()).is_ok());
        assert!(request(&csr(None, &|san| san.uri(&uri), false), &cart()).is_ok());
        let others: [(&str, String); 6] = [
            ("another identity", Request::new(&Identity::new("cluster.local", "shop", "till")).unwrap().csr),
            ("a subject", csr(Some("root"), &|san| san.uri(&uri), false)),
            ("a second identity", csr(None, &|san| san.uri(&uri).uri("spiffe://x/ns/a/sa/b"), false)),
            ("a host", csr(None, &|san| san.uri(&uri).dns("istiod.istio-system.svc"), false)),
            ("the right to sign", csr(None, &|san| san.uri(&uri), true)),
            ("garbage", "garbage".to_owned()),
        ];
        for (what, csr) in others {
            assert!(matches!(request(&csr, &cart()), Err(SignError::Request(_))), "{what}");
        }
    }

    #[test]
    fn a_certificate_must_be_for_the_key_and_the_identity() {
        let life = starting(SystemTime::now(), Duration::from_secs(3600));
        let authority = Authority::self_signed(&"td".into(), life, Serial::new(1)).unwrap();
        let sign = |csr: &str, identity: &Identity| {
            let chain = authority.sign(csr, identity, life, Serial::new(2)).unwrap();
            X509::from_pem(chain[0].as_bytes()).unwrap()
        };
        let asked = Request::new(&cart()).unwrap().csr;
        let parsed = request(&asked, &cart()).unwrap();
        assert_eq!(certificate(&sign(&asked, &cart()), &parsed, &cart()), Ok(()));
        let till = Identity::new("cluster.local", "shop", "till");
        assert!(certificate(&sign(&asked, &till), &parsed, &cart()).unwrap_err().contains("identity"));
        let other = Request::new(&cart()).unwrap().csr;
        assert!(certificate(&sign(&other, &cart()), &parsed, &cart()).unwrap_err().contains("key"));
        let root = X509::from_pem(authority.roots().as_bytes()).unwrap();
        assert!(certificate(&root, &parsed, &cart()).is_err());
    }
}
