package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"os"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// The JUnit report as build servers read it: a suite for each edge and endpoint, a
// case for each check. What could not be tried is an error there, and not skipped,
// which would count as no trouble.
type (
	junitReport struct {
		XMLName xml.Name     `xml:"testsuites"`
		Name    string       `xml:"name,attr"`
		Tests   int          `xml:"tests,attr"`
		Fails   int          `xml:"failures,attr"`
		Errors  int          `xml:"errors,attr"`
		Suites  []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name   string      `xml:"name,attr"`
		Host   string      `xml:"hostname,attr"`
		Tests  int         `xml:"tests,attr"`
		Fails  int         `xml:"failures,attr"`
		Errors int         `xml:"errors,attr"`
		Cases  []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name  string      `xml:"name,attr"`
		Class string      `xml:"classname,attr"`
		Fail  *junitTrail `xml:"failure,omitempty"`
		Error *junitTrail `xml:"error,omitempty"`
		Out   string      `xml:"system-out,omitempty"`
	}
	junitTrail struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// writeJUnit writes the report to path.
func (v *verification) writeJUnit(path string) error {
	var b bytes.Buffer
	b.WriteString(xml.Header)
	e := xml.NewEncoder(&b)
	e.Indent("", "  ")
	if err := e.Encode(v.junit()); err != nil {
		return fmt.Errorf("write the JUnit report: %w", err)
	}
	b.WriteString("\n")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fault.Wrap(err, fault.Usage, "choose a file that you may write: --junit FILE", "the JUnit report is not written")
	}
	return nil
}

func (v *verification) junit() *junitReport {
	rep := &junitReport{Name: "parley verify " + v.Plan.TrustDomain}
	var suite *junitSuite
	for _, r := range v.Results {
		name := fmt.Sprintf("%s -> %s", r.Caller, r.Callee)
		if r.Endpoint != "" {
			name += " at " + r.Endpoint
		}
		if suite == nil || suite.Name != name || suite.Host != r.Host {
			rep.Suites = append(rep.Suites, junitSuite{Name: name, Host: r.Host})
			suite = &rep.Suites[len(rep.Suites)-1]
		}
		suite.add(r)
	}
	for _, m := range v.Missed {
		trail := &junitTrail{Message: m.Why, Text: m.Why}
		rep.Suites = append(rep.Suites, junitSuite{Name: "from " + m.Host, Host: m.Host, Tests: 1, Errors: 1, Cases: []junitCase{{Name: "tried", Class: m.Host, Error: trail}}})
	}
	for _, s := range rep.Suites {
		rep.Tests, rep.Fails, rep.Errors = rep.Tests+s.Tests, rep.Fails+s.Fails, rep.Errors+s.Errors
	}
	return rep
}

func (s *junitSuite) add(r verifyResult) {
	c := junitCase{Name: r.Check, Class: r.Caller + "." + r.Callee}
	trail := &junitTrail{Message: r.Detail, Text: r.Detail}
	if r.Help != "" {
		trail.Text += "\nhelp: " + r.Help
	}
	s.Tests++
	switch r.Outcome {
	case api.Failed:
		c.Fail, s.Fails = trail, s.Fails+1
	case api.Inconclusive:
		c.Error, s.Errors = trail, s.Errors+1
	case api.Warning:
		c.Out = "warning: " + trail.Text
	default:
		c.Out = r.Detail
	}
	s.Cases = append(s.Cases, c)
}
