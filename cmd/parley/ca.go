package main

import (
	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/internal/control/api"
)

func (a *app) caCommand() *cobra.Command {
	return group("ca", "the trust domain's own certificates",
		"  parley ca show > ca.pem\n  curl --cacert ca.pem https://localhost:8443/",
		&cobra.Command{
			Use: "show", Short: "the root certificates in PEM",
			Example: "  parley ca show > ca.pem",
			Args:    arguments(0, 0, "no arguments"),
			RunE: a.ask(func(cmd *cobra.Command, c *api.Client, _ []string) error {
				roots, err := c.Bundle(cmd.Context())
				if err != nil {
					return err
				}
				if !a.term.JSON() {
					return a.term.Raw(roots)
				}
				certs, err := parsePEM(roots)
				if err != nil {
					return err
				}
				return a.term.Document("ca", caDocument{PEM: string(roots), Roots: describeAll(certs)})
			}),
		})
}

type caDocument struct {
	PEM   string        `json:"pem"`
	Roots []certificate `json:"roots"`
}
