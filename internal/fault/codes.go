package fault

// The codes, by the room that makes them: 1xxx the mesh file, 2xxx keys,
// identity and trust, 3xxx the store and the audit log, 4xxx the agent and its
// listeners, 5xxx the admin API and the command line.
const (
	// The mesh file.
	MeshSyntax       Code = "PAR-1001" // not YAML, or not one document
	MeshUnknownKey   Code = "PAR-1002" // a key that the mesh file does not have
	MeshType         Code = "PAR-1003" // a value of the wrong type
	MeshMissing      Code = "PAR-1004" // a required key is not there
	MeshDuplicate    Code = "PAR-1005" // the same key or name twice
	MeshValue        Code = "PAR-1006" // a value that is out of range or malformed
	MeshUnknownName  Code = "PAR-1007" // a service, gateway or kind that does not exist
	MeshPortTaken    Code = "PAR-1008" // two listeners on one address
	MeshTooLarge     Code = "PAR-1009" // the document exceeds a limit
	MeshUnreadable   Code = "PAR-1010" // the file cannot be read
	MeshContradicts  Code = "PAR-1011" // two settings that cannot both hold
	MeshDurationUnit Code = "PAR-1012" // a duration without a unit
	MeshUnsafe       Code = "PAR-1013" // an unsafe_ setting without a reason

	// Keys, identity, trust.
	KeyUnreadable    Code = "PAR-2001" // a key file cannot be read
	KeyMode          Code = "PAR-2002" // a key file that others may read
	KeyCorrupt       Code = "PAR-2003" // a sealed file that does not open with this master key
	ClockWrong       Code = "PAR-2004" // this machine's clock contradicts what is recorded
	CertUnusable     Code = "PAR-2005" // a certificate that may not be used
	NotAttested      Code = "PAR-2006" // the process is no workload of the mesh
	SelectorBlind    Code = "PAR-2007" // a selector that this agent may not read
	WritableByItself Code = "PAR-2008" // an executable that its own service may write
	KeyUnwritable    Code = "PAR-2009" // a key file cannot be written
	CAForeign        Code = "PAR-2010" // a data directory whose CA is another trust domain's
	NotSubject       Code = "PAR-2011" // an identity that may not be issued to
	JoinToken        Code = "PAR-2012" // a join token that is malformed, expired, used or unknown
	ServerUntrusted  Code = "PAR-2013" // a server that is not the one of the join token
	HostUnknown      Code = "PAR-2014" // an agent of a host that has no part in the mesh
	SelectorMissing  Code = "PAR-2015" // a selector that nothing on this host can match

	// The store and the audit log.
	StoreCorrupt     Code = "PAR-3001" // the database fails its integrity check
	StoreFull        Code = "PAR-3002" // no space left for the database
	StoreReadOnly    Code = "PAR-3003" // the database cannot be written
	StoreVersion     Code = "PAR-3004" // the database is from a newer Parley
	StoreBusy        Code = "PAR-3005" // another process holds the database
	LogBroken        Code = "PAR-3006" // the audit log does not verify
	LogFull          Code = "PAR-3007" // no space left for the audit log
	LogBusy          Code = "PAR-3008" // another process holds the audit log
	LogUnusable      Code = "PAR-3009" // the audit log's files cannot be read or written
	DirUnusable      Code = "PAR-3010" // the data directory cannot be made or used
	StoreURL         Code = "PAR-3011" // a URL of a database that is malformed or not safe
	StoreUnreachable Code = "PAR-3012" // the database server does not answer
	StoreRefused     Code = "PAR-3013" // the database server does not let Parley in
	StoreUntrusted   Code = "PAR-3014" // the database server does not prove who it is
	StoreUnfit       Code = "PAR-3015" // a database server or a database that Parley cannot use
	LogForked        Code = "PAR-3017" // an audit log shows another past than it had

	// The agent and its listeners.
	PortOccupied  Code = "PAR-4001" // another process listens on the address
	SocketPath    Code = "PAR-4002" // a Unix socket path that is too long or occupied
	PortForbidden Code = "PAR-4003" // the address may not be bound by this user
	AppPortHeld   Code = "PAR-4004" // another user's process holds the app port
	NotRunning    Code = "PAR-4005" // a change that is stored and does not run in full
	AppDown       Code = "PAR-4006" // nothing takes the calls of a service
	IssuerKeys    Code = "PAR-4007" // keys of a token issuer that are not loaded or not used
	EndpointName  Code = "PAR-4008" // the DNS name of an endpoint that cannot be looked up
	AppUnhealthy  Code = "PAR-4009" // an application that says it is not well

	// The ports of applications, beside the sidecars.
	FirewallUnusable Code = "PAR-4021" // the packet filter cannot be read or changed
	PortNotClosed    Code = "PAR-4022" // an app port that the rules must not close, or that they close to some only

	// The admin API and the command line.
	Unreachable  Code = "PAR-5001" // the admin API does not answer
	NotPermitted Code = "PAR-5002" // the caller may not do this
	NotFound     Code = "PAR-5003" // nothing of that name or number
	Conflict     Code = "PAR-5004" // the state moved in the meantime
	Usage        Code = "PAR-5005" // the command line is wrong
	Internal     Code = "PAR-5006" // a defect of Parley itself
	BadRequest   Code = "PAR-5007" // a request that the admin API does not accept
)
