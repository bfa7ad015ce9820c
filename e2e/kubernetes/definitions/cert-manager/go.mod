// Its CustomResourceDefinitions, to test the controller's requests with. Nothing of it is built.
module ambit.example/e2e/kubernetes/definitions/cert-manager

go 1.26.0

require github.com/cert-manager/cert-manager v1.21.2
