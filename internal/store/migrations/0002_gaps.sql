-- The gap events, of which a status counts what they tell: few, among very many.
CREATE INDEX entry_gap ON entry (position) WHERE action = 'audit.gap';
