// Package assess attacks a mesh in place of believing it: for one edge after
// another it calls the callee's sidecar from the caller's host, once as it should be
// done and then in every way that has to be refused, and judges by what comes back.
//
// It refuses to import the rooms that it judges: it speaks TLS by configurations of
// its own, weak where that is the attack, and knows right from wrong by what the
// server read in the mesh file. It sends nothing that an application would get: its
// requests are answered, or refused, by the sidecar in front.
package assess

import (
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// A Check is one thing that is tried of an edge.
type Check string

// The checks. Control is the positive one: the allowed call is allowed. Where it
// fails nothing else means anything.
const (
	Control Check = "control"

	NoCertificate Check = "no_certificate"
	ForeignCA     Check = "foreign_ca"    // of a CA of another trust domain
	LookAlikeCA   Check = "look_alike_ca" // of a CA that calls itself as ours does
	Expired       Check = "expired"
	NotYetValid   Check = "not_yet_valid"
	WrongUsage    Check = "wrong_usage" // for servers only
	TwoNames      Check = "two_names"
	Stranger      Check = "stranger"       // ours, of nobody in the mesh
	ProbeMisused  Check = "probe_misused"  // a probe's certificate, shown as any other
	WrongIdentity Check = "wrong_identity" // a member that no rule names
	WrongRequest  Check = "wrong_request"  // the caller, with a request that no rule allows
	Plaintext     Check = "plaintext"
	TLS11         Check = "tls_1_1"
	TLS12         Check = "tls_1_2"

	CutByBan  Check = "cut_by_ban" // a connection that was open when its identity was banned
	Banned    Check = "banned"
	ResumeBan Check = "resumed_after_ban" // with the session of before

	AppPort      Check = "app_port"       // the application, beside its sidecar
	AppPortLocal Check = "app_port_local" // the same, on its own host

	ImpostorName  Check = "impostor_name"  // an upstream with another service's good certificate
	ImpostorAlike Check = "impostor_alike" // an upstream with the right name, of a CA that looks like ours
)

// Checks are all of them, in the order in which they are told.
func Checks() []Check {
	return []Check{
		Control, NoCertificate, ForeignCA, LookAlikeCA, Expired, NotYetValid, WrongUsage, TwoNames, Stranger, ProbeMisused,
		WrongIdentity, WrongRequest, Banned, ResumeBan, CutByBan, Plaintext, TLS11, TLS12, AppPort, AppPortLocal, ImpostorName, ImpostorAlike,
	}
}

// A Phase is a part of a run, on one host.
type Phase string

// The phases: everything that needs no ban; what does, once identity.VerifyID is
// banned; the end, after which a host keeps nothing of the run.
const (
	Attack   Phase = "attack"
	AfterBan Phase = "after_ban"
	Over     Phase = "over"
)

// An Order is what one host is to try.
type Order struct {
	// Run names the verification.
	Run   string `json:"run"`
	Phase Phase  `json:"phase"`
	// Edges are given with Attack and kept until Over.
	Edges []Edge `json:"edges,omitempty"`
}

// An Edge is one caller of one callee, with what the mesh file says of it.
type Edge struct {
	// Caller and Callee are as people name them: a service, gateway/NAME.
	Caller   string      `json:"caller"`
	CallerID identity.ID `json:"caller_id"`
	Callee   string      `json:"callee"`
	CalleeID identity.ID `json:"callee_id"`
	HTTP     bool        `json:"http,omitempty"`
	// Endpoints are the callee's inbounds as the caller's host reaches them.
	Endpoints []string `json:"endpoints"`
	// Allowed may be sent, Forbidden not; both are empty for TCP, and Forbidden where
	// every request is allowed.
	Allowed   Request `json:"allowed,omitzero"`
	Forbidden Request `json:"forbidden,omitzero"`
	// Forwarded says that Allowed is let through to the application.
	Forwarded bool `json:"forwarded,omitempty"`
	// App is the callee's application: host:port on its host, or unix: and a path.
	App string `json:"app"`
	// SameHost says that the callee runs on the caller's host.
	SameHost bool `json:"same_host,omitempty"`
	// Observed is until when the mesh file lets plaintext in.
	Observed time.Time `json:"observed,omitzero"`
	// Sidecar says that the caller calls by its sidecar, so that it can be tried too.
	Sidecar bool `json:"sidecar,omitempty"`
}

// A Request is a method and a path.
type Request struct {
	Method string `json:"method"`
	Path   string `json:"path"`
}

// String is "GET /path".
func (r Request) String() string { return r.Method + " " + r.Path }

// An Outcome is what came of a check.
type Outcome string

// The outcomes.
const (
	OK           Outcome = "ok"           // refused as it must be; of Control, allowed
	Failed       Outcome = "failed"       // it got through; of Control, it did not
	Warning      Outcome = "warning"      // open, where that may be meant
	Inconclusive Outcome = "inconclusive" // it could not be tried, which is no pass
)

// Outcomes are all of them.
func Outcomes() []Outcome { return []Outcome{OK, Failed, Warning, Inconclusive} }

// A Result is one check of one edge at one endpoint.
type Result struct {
	Caller   string  `json:"caller"`
	Callee   string  `json:"callee"`
	Endpoint string  `json:"endpoint,omitempty"`
	Check    Check   `json:"check"`
	Outcome  Outcome `json:"outcome"`
	// Detail is what came back, or why nothing was tried; Help what to do.
	Detail string `json:"detail,omitempty"`
	Help   string `json:"help,omitempty"`
	// Decision is the id of the decision, where one was made.
	Decision string `json:"decision,omitempty"`
}

// A Report is what a host says of an order: results as they come, and in the end
// that the phase is done.
type Report struct {
	Run     string   `json:"run"`
	Phase   Phase    `json:"phase"`
	Results []Result `json:"results,omitempty"`
	Done    bool     `json:"done,omitempty"`
	// Fault is why the phase could not be tried.
	Fault string `json:"fault,omitempty"`
}
