// The first process of a pod and of a node. Needs nothing but the language.
module ambit.example/e2e/kubernetes/programs/pause

go 1.24.0
