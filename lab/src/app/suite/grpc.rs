//! The one call of the tests: `proto.EchoTestService/Echo` takes a message and answers with one.

/// The path of the call.
pub(crate) const PATH: &str = "/proto.EchoTestService/Echo";

/// `EchoRequest` and `EchoResponse` are alike.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Echo {
    #[prost(string, tag = "1")]
    pub(crate) message: String,
}
