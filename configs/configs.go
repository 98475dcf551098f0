// Package configs holds the example sites and the templates a new site is written from.
//
// The lists below name every file one by one: signing keys a developer has beside a site, in
// secrets/ or demo-keys/, can therefore never end up in a program.
package configs

import "embed"

// Sites holds each example site in a directory of its name, as provision.Load
// wants it. The demo's challenges and passwords are published: never use it in production.
//
//go:embed demo/site.yaml demo/profiles/corp.yaml demo/profiles/modern.yaml demo/profiles/iot.yaml
//go:embed demo/profiles/legacy.yaml demo/profiles/intune.yaml demo/trust/connector.pem demo/trust/bootstrap.pem
var Sites embed.FS

// Template holds the text/template files of a new site under template/: each is executed with Name,
// PublicHost, Subject, DNSPattern, ChallengeHash and PasswordHash, and written without ".tmpl".
//
//go:embed template/site.yaml.tmpl template/profiles/corp.yaml.tmpl
var Template embed.FS
