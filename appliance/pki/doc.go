// Package pki decides what a certificate says and has it signed: requests, profiles, issuers.
//
// It holds no state and no key: private keys come in as [crypto.Signer], the clock as an argument.
// What a site wrote ([ProfileConfig]) and what passed its checks ([Profile]) are two types, and only
// [Issuer.Prepare] makes a [Prepared], which signs once. Certificates are assembled here byte by byte,
// so that the subject, unless a profile has a template for it, and the subjectAltName of a request come
// back exactly as they were sent.
package pki
