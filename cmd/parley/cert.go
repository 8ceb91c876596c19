package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
)

func (a *app) certCommand() *cobra.Command {
	return group("cert", "certificates: those that were issued, and what is in one",
		`  parley cert list
  parley cert inspect leaf.pem
  parley cert inspect 127.0.0.1:8443
  parley cert issue admin/alice --out alice.pem`,
		a.certListCommand(), a.certInspectCommand(), a.certIssueCommand())
}

func (a *app) certListCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "list", Short: "the certificates that are in use",
		Example: "  parley cert list\n  parley cert list --all      also those that were replaced and have not ended",
		Args:    arguments(0, 0, "no arguments"),
	}
	cmd.Flags().BoolVar(&all, "all", false, "also those that were replaced and have not ended")
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, _ []string) error {
		certs, err := pages(func(cursor string) ([]api.Certificate, string, error) {
			l, err := c.Certificates(cmd.Context(), api.ListCertificatesParams{Cursor: cursor, Limit: 1000})
			if err != nil {
				return nil, "", err
			}
			return l.Items, l.Next, nil
		})
		if err != nil {
			return err
		}
		if !all {
			certs = inUse(certs)
		}
		if a.term.JSON() {
			return a.term.Document("certificates", api.CertificateList{Items: certs})
		}
		a.writeCertificates(certs, a.clock.Now())
		return nil
	})
	return cmd
}

// inUse leaves out leaves that their holder has replaced.
func inUse(certs []api.Certificate) []api.Certificate {
	list := []api.Certificate{}
	for _, c := range certs {
		if c.Current || c.Kind == "root" || c.Kind == "intermediate" {
			list = append(list, c)
		}
	}
	return list
}

func (a *app) writeCertificates(certs []api.Certificate, now time.Time) {
	if len(certs) == 0 {
		a.term.Printf("No certificate is in use.\n")
		return
	}
	tab := &term.Table{Columns: []term.Column{
		{}, {Title: "KIND"}, {Title: "IDENTITY", Min: 20}, {Title: "SERIAL", Min: 12, Drop: 2}, {Title: "ENDS"}, {Title: "RENEWS", Drop: 1},
	}}
	for _, c := range certs {
		mark := term.OK
		if !c.Current && c.Kind != "root" && c.Kind != "intermediate" {
			mark = term.None
		}
		if c.NotAfter.Before(now) {
			mark = term.No
		}
		tab.Row(mark, c.Kind, c.ID, c.Serial, term.Relative(c.NotAfter, now), term.Relative(c.RenewsAt, now))
	}
	a.term.Table(tab)
}
