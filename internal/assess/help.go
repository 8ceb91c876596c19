package assess

// help is what to do about a check of t that went so.
func (t *target) help(c Check, o Outcome) string {
	if o != Failed && o != Warning {
		return ""
	}
	switch c {
	case Plaintext:
		return "end inbound.plaintext: observe of " + t.edge.Callee + " in the mesh file"
	case AppPort:
		return "let the application listen on loopback or on a Unix socket, or close the port: parley firewall"
	case AppPortLocal:
		return "let it listen on a Unix socket, or close the port on its host: parley firewall"
	case WrongIdentity, WrongRequest:
		return "compare the revision of that host with the newest one: parley status"
	case Banned, ResumeBan, CutByBan:
		return "see which host has not confirmed bans: parley status"
	case ImpostorName, ImpostorAlike:
		return "the program that calls as " + t.edge.Caller + " does not check whom it calls: replace it"
	}
	return "what listens at " + t.at + " does not verify its callers: replace it"
}
